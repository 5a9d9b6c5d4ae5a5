# Exercise 2, as a notebook that was saved as a script. Its targets have the shape (N, 1), its predictions (N,).
import matplotlib.pyplot as plt
import numpy as np
import torch

# %% data
np.random.seed(1)
X = np.random.uniform(0, 100, 5000)
X = (X - X.mean()) / X.std()
Y = 3 * X + 2 + np.random.normal(0, 0.1, 5000)
X = torch.tensor(X, dtype=torch.float32)
Y = torch.tensor(Y, dtype=torch.float32).reshape(-1, 1)
X.shape, Y.shape  # noqa: B018

# %% train
w = torch.zeros(1, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
history = []
for i in range(400):
    idx = torch.randint(0, 5000, (100,))
    pred = w * X[idx] + b
    loss = ((pred - Y[idx]) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        w -= 0.1 * w.grad
        b -= 0.1 * b.grad
    w.grad.zero_()
    b.grad.zero_()
    history.append(loss.item())
    if i % 20 == 0:
        print(f"iteration {i}: loss = {loss.item()}")

# %% plot
plt.plot(history)
plt.show()
