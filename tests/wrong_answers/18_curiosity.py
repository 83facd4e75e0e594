"""Plausible wrong answers to the exercises of 18_curiosity: every check must refuse them."""

# %% 18.1 gives what they agree on
def dispute_of_two(delta):
    return -sum(x * math.log(x) for x in (0.5 + delta, 0.5 - delta) if x > 0)


# %% 18.1 takes the divergence between the two
def dispute_of_two(delta):
    p, q = 0.5 + delta, max(0.5 - delta, 1e-12)
    return p * math.log(p / q) + q * math.log(q / p)


# %% 18.1 keeps only the first power that matters
def dispute_of_two(delta):
    return 2 * delta**2


# %% 18.2 keeps the mean of logits
def disagreement(logits):
    mean, each = logits.mean(0).softmax(-1), logits.softmax(-1)
    entropy = lambda p: -torch.xlogy(p, p).sum(-1)
    return entropy(mean) - entropy(each).mean(0)


# %% 18.2 forgets certain heads
def disagreement(logits):
    each = logits.softmax(-1)
    entropy = lambda p: -(p * p.log()).sum(-1)
    return entropy(each.mean(0)) - entropy(each).mean(0)


# %% 18.2 adds where it should average
def disagreement(logits):
    each = logits.softmax(-1)
    entropy = lambda p: -torch.xlogy(p, p).sum(-1)
    return entropy(each.mean(0)) - entropy(each).sum(0)


# %% 18.3 thinks that draws see all of it
def share_that_is_seen(n):
    return 1.0


# %% 18.3 counts pairs
def share_that_is_seen(n):
    return n / (n + 1)


# %% 18.3 takes the other correction
def share_that_is_seen(n):
    return n / (n - 1)


# %% 18.4 adds the channels
def dispute_about_cells(p):
    entropy = lambda q: -torch.xlogy(q, q).sum(-1)
    return (entropy(p.mean(0)) - entropy(p).mean(0)).sum()


# %% 18.4 takes the mean of the channels
def dispute_about_cells(p):
    entropy = lambda q: -torch.xlogy(q, q).sum(-1)
    return (entropy(p.mean(0)) - entropy(p).mean(0)).mean()


# %% 18.4 mixes the heads before it multiplies
def dispute_about_cells(p):
    entropy = lambda q: -torch.xlogy(q, q).sum(-1)
    return entropy(p.mean(0)).sum() - entropy(p).mean(0).sum() + 0 * p.prod()


# %% 18.5 pays a coin that is known to be fair
def total_pay(T):
    return T * math.log(2), sum(1 / (2 * (t + 1)) for t in range(T))


# %% 18.5 counts throws from one
def total_pay(T):
    surprise = dispute = 0.0
    for t in range(1, T + 1):
        h = torch.arange(t + 1).double()
        a = torch.stack([h + 1, t - h + 1], -1)
        p = a / (t + 2)
        whole = -(p * p.log()).sum(-1)
        agreed = torch.digamma(torch.tensor(t + 3.0).double()) - (p * torch.digamma(a + 1)).sum(-1)
        surprise, dispute = surprise + whole.mean().item(), dispute + (whole - agreed).mean().item()
    return surprise, dispute


# %% 18.5 forgets what the heads agree on
def total_pay(T):
    surprise = 0.0
    for t in range(T):
        h = torch.arange(t + 1).double()
        p = torch.stack([h + 1, t - h + 1], -1) / (t + 2)
        surprise += -(p * p.log()).sum(-1).mean().item()
    return surprise, surprise
