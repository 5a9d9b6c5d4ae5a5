# Exercise 4. Its network ends with a softmax, and the loss has another one. At its end it crashes.
import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
rng = np.random.default_rng(0)
x = rng.standard_normal((6000, 2))
y = (np.concatenate([3 * x, np.zeros((6000, 1))], axis=1) + rng.gumbel(size=(6000, 3))).argmax(1)
x, y = torch.tensor(x).float(), torch.tensor(y)
net = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1))
opt = torch.optim.SGD(net.parameters(), lr=0.5)
loss_function = nn.CrossEntropyLoss()
for step in range(1000):
    idx = torch.randint(6000, (500,))
    opt.zero_grad()
    loss = loss_function(net(x[idx]), y[idx])
    loss.backward()
    opt.step()
    if step % 50 == 0:
        print(step, "loss:", loss.item())
accuracy = (net(x).argmax(1) == y).float().mean().item()
print("accuracy:", accuracy)
np.savetxt("results/no/such/folder/loss.txt", [loss.item()])
