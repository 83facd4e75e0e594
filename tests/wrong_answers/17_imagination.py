"""Plausible wrong answers to the exercises of 17_imagination: every check must refuse them."""

# %% 17.1 leaves out the step of the end
def expected_live_steps(q, H):
    return sum((1 - q) ** t for t in range(1, H))


# %% 17.1 counts the last observation as a step
def expected_live_steps(q, H):
    return sum((1 - q) ** t for t in range(H))


# %% 17.1 forgets the horizon
def expected_live_steps(q, H):
    return 1 / q


# %% 17.2 mends only the mean
def mean_over_live_steps(x, done):
    going_on = (1 - done).cumprod(1)
    return (x * going_on).sum() / going_on.sum()


# %% 17.2 mends only the mask
def mean_over_live_steps(x, done):
    alive = torch.cat([torch.ones_like(done[:, :1]), (1 - done).cumprod(1)[:, :-1]], 1)
    return ((x * alive).sum(1) / alive.sum(1)).mean()


# %% 17.2 lets a dream live again after an end
def mean_over_live_steps(x, done):
    alive = torch.cat([torch.ones_like(done[:, :1]), 1 - done[:, :-1]], 1)
    return (x * alive).sum() / alive.sum()


# %% 17.2 divides by all steps
def mean_over_live_steps(x, done):
    alive = torch.cat([torch.ones_like(done[:, :1]), (1 - done).cumprod(1)[:, :-1]], 1)
    return (x * alive).mean()


# %% 17.3 takes the expected reward
def best_baseline(p, r):
    return (p * r).sum()


# %% 17.3 takes the mean of the rewards
def best_baseline(p, r):
    return r.mean()


# %% 17.3 forgets how likely each button is
def best_baseline(p, r):
    length = 1 - 2 * p + p.square().sum()
    return (length * r).sum() / length.sum()


# %% 17.4 asks the first question after the context alone
def questions_beyond_training(n, k, H):
    return max(0, min(H - 1, k + H - 2 - n))


# %% 17.4 counts observations in place of questions
def questions_beyond_training(n, k, H):
    return max(0, min(H, k + H - n))


# %% 17.4 forgets the context
def questions_beyond_training(n, k, H):
    return max(0, H - 1 - n)


# %% 17.4 may count more questions than there are
def questions_beyond_training(n, k, H):
    return max(0, k + H - 1 - n)


# %% 17.5 keeps the own dream in the mean
def advantage_by_others(G):
    return G - G.mean(1, keepdim=True)


# %% 17.5 divides by all dreams
def advantage_by_others(G):
    return G - (G.sum(1, keepdim=True) - G) / G.shape[1]


# %% 17.5 takes the mean over all starts
def advantage_by_others(G):
    return G - (G.sum() - G) / (G.numel() - 1)


# %% 17.6 says that errors cancel
def false_promise(N, e):
    return 0.0


# %% 17.6 takes the worst case
def false_promise(N, e):
    return e


# %% 17.6 measures from the middle
def false_promise(N, e):
    return e * N / (N + 1)
