"""Plausible wrong answers to the exercises of `nbs/04_scalars.ipynb`: each check must refuse
them."""

# %% 4.1 forgets the slope of symlog at the prediction
def compressed_gradient(x_hat, x):
    return 2 * (symlog(x_hat) - symlog(x))

# %% 4.1 right for positive predictions only
def compressed_gradient(x_hat, x):
    return 2 * (symlog(x_hat) - symlog(x)) / (1 + x_hat)

# %% 4.1 takes the slope at the target
def compressed_gradient(x_hat, x):
    return 2 * (symlog(x_hat) - symlog(x)) / (1 + x.abs())

# %% 4.2 takes the step for the width of a bin
def bins_needed(largest, step):
    return 2 * math.ceil(math.log1p(largest) / step) + 1

# %% 4.2 counts one side only
def bins_needed(largest, step):
    n = math.ceil(math.log1p(largest) / math.log1p(step)) + 1
    return n + 1 - n % 2

# %% 4.2 rounds down
def bins_needed(largest, step):
    return 2 * int(math.log1p(largest) / math.log1p(step)) + 1

# %% 4.3 mends the silent fault only
def histogram(x, low, high, bins, sigma=0.75):
    b = torch.linspace(low, high, bins, dtype=x.dtype)
    width = (high - low) / (bins - 1)
    y = symlog(x)[..., None]
    edges = torch.cat([b - width / 2, b[-1:] + width / 2])
    below = torch.special.ndtr((edges - y) / (sigma * width))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

# %% 4.3 mends the loud fault only
def histogram(x, low, high, bins, sigma=0.75):
    b = torch.linspace(low, high, bins, dtype=x.dtype)
    width = (high - low) / (bins - 1)
    y = symlog(x).clamp(low, high)[..., None]
    edges = torch.cat([b - width / 2, b[-1:] + width / 2])
    below = torch.special.ndtr((edges - y) / sigma)
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

# %% 4.3 clips the raw number instead of its symlog
def histogram(x, low, high, bins, sigma=0.75):
    b = torch.linspace(low, high, bins, dtype=x.dtype)
    width = (high - low) / (bins - 1)
    y = symlog(x.clamp(low, high))[..., None]
    edges = torch.cat([b - width / 2, b[-1:] + width / 2])
    below = torch.special.ndtr((edges - y) / (sigma * width))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

# %% 4.4 says the mean
def read_of_a_rare(reward, chance):
    return reward * chance

# %% 4.4 forgets negative rewards
def read_of_a_rare(reward, chance):
    return (1 + abs(reward)) ** chance - 1

# %% 4.4 forgets to go back from symlog space
def read_of_a_rare(reward, chance):
    return chance * math.copysign(math.log1p(abs(reward)), reward)

# %% 4.5 counts one of the two boxes
def two_hot_bias(width):
    return width**2 / 24

# %% 4.5 says the largest error instead of the average
def two_hot_bias(width):
    return width**2 / 8

# %% 4.5 says that two-hot is exact
def two_hot_bias(width):
    return 0.0

# %% 4.6 stops at the centre of the bin
def quantile(head, logits, tau):
    i = (logits.softmax(-1).cumsum(-1) < tau).sum(-1)
    return symexp(head.low + i * head.width)

# %% 4.6 forgets that a bin begins half a width before its centre
def quantile(head, logits, tau):
    p = logits.softmax(-1)
    i = (p.cumsum(-1) < tau).sum(-1, keepdim=True)
    before = (p.cumsum(-1) - p).gather(-1, i)
    into = (tau - before) / p.gather(-1, i)
    return symexp(head.low + (i + into) * head.width)[..., 0]

# %% 4.6 stays in symlog space
def quantile(head, logits, tau):
    p = logits.softmax(-1)
    i = (p.cumsum(-1) < tau).sum(-1, keepdim=True)
    before = (p.cumsum(-1) - p).gather(-1, i)
    into = (tau - before) / p.gather(-1, i)
    return (head.low + (i + into - 0.5) * head.width)[..., 0]
