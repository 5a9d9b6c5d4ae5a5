# Exercise 1, printing all it has at every step. Its gradients are sums over the batch and not means.
import numpy as np

np.random.seed(0)
x = np.random.rand(2000) * 100
x = (x - np.mean(x)) / np.std(x)
y = 3 * x + 2 + np.random.randn(2000) * 0.1
m = 0.0
c = 0.0
for step in range(2000):
    batch = np.random.choice(2000, 100)
    xb, yb = x[batch], y[batch]
    y_hat = m * xb + c
    print("predictions", y_hat)
    loss = np.mean((y_hat - yb) ** 2)
    dm = np.sum(2 * (y_hat - yb) * xb)
    dc = np.sum(2 * (y_hat - yb))
    print("gradients", dm, dc)
    m = m - 0.1 * dm
    c = c - 0.1 * dc
    print("step", step, "loss", loss, "m", m, "c", c)
