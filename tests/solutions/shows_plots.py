# Exercise 3, with windows that open. It never zeroes its gradients.
import matplotlib.pyplot as plt
import numpy as np
import torch


def get_data(n=5000, d=10):
    rng = np.random.RandomState(0)
    x = rng.randn(n, d)
    true_w = rng.randn(d) * 3
    return x, x @ true_w + 2 + rng.randn(n) * 0.1


x, y = get_data()
x, y = torch.from_numpy(x), torch.from_numpy(y)
plt.scatter(x[:, 0], y)
plt.title("data")
plt.show()
w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
b = torch.zeros((), dtype=torch.float64, requires_grad=True)
losses = []
for epoch in range(150):
    for i in range(0, 5000, 500):
        loss = ((x[i : i + 500] @ w + b - y[i : i + 500]) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            w -= 0.02 * w.grad
            b -= 0.02 * b.grad
        losses.append(loss.item())
    if epoch % 3 == 0:
        print("epoch", epoch, "train loss", losses[-1])
plt.plot(losses)
plt.show()
