"""Plausible wrong answers to the exercises of 16_controller: every check must refuse them."""

# %% 16.1 counts one step of the LSTM per step of the game
def forget_bias(share, n):
    gate = share ** (1 / (n - 1))
    return math.log(gate / (1 - gate))


# %% 16.1 counts from the empty memory
def forget_bias(share, n):
    gate = share ** (1 / (2 * n))
    return math.log(gate / (1 - gate))


# %% 16.1 gives the gate in place of its bias
def forget_bias(share, n):
    return share ** (1 / (2 * (n - 1)))


# %% 16.2 takes the gates in the order i, f, o, g
def latch():
    W = torch.tensor([[0.0, 40.0], [0.0, -40.0], [0.0, 0.0], [1.0, 0.0]])
    return W, torch.tensor([-20.0, 20.0, 20.0, 0.0])


# %% 16.2 never forgets
def latch():
    W = torch.tensor([[0.0, 40.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    return W, torch.tensor([-20.0, 20.0, 0.0, 20.0])


# %% 16.2 has gates that are not sure
def latch():
    W = torch.tensor([[0.0, 8.0], [0.0, -8.0], [1.0, 0.0], [0.0, 0.0]])
    return W, torch.tensor([-4.0, 4.0, 0.0, 20.0])


# %% 16.3 lets the softmax run over what does not exist
def whole_log_prob(logits, action, nvec):
    return logits.log_softmax(-1).gather(-1, action[..., None]).squeeze(-1).sum(-1)


# %% 16.3 takes the mean
def whole_log_prob(logits, action, nvec):
    each = [logits[:, j, :n].log_softmax(-1).gather(1, action[:, j:j + 1])[:, 0]
            for j, n in enumerate(nvec)]
    return torch.stack(each).mean(0)


# %% 16.3 takes one softmax for all dimensions
def whole_log_prob(logits, action, nvec):
    kept = torch.cat([logits[:, j, :n] for j, n in enumerate(nvec)], 1).log_softmax(-1)
    starts = torch.tensor([sum(nvec[:j]) for j in range(len(nvec))])
    return kept.gather(1, action + starts).sum(1)


# %% 16.4 mends only the order of the row
def read_by_policy(lstm, x, e):
    y, _ = lstm(torch.stack([x, e], 2).flatten(1, 2))
    return y[:, 1::2]


# %% 16.4 mends only which outputs are read
def read_by_policy(lstm, x, e):
    y, _ = lstm(torch.stack([x, e], 1).flatten(1, 2))
    return y[:, ::2]


# %% 16.4 puts the action before the observation
def read_by_policy(lstm, x, e):
    y, _ = lstm(torch.stack([e, x], 2).flatten(1, 2))
    return y[:, 1::2]


# %% 16.4 reads no actions
def read_by_policy(lstm, x, e):
    return lstm(x)[0]


# %% 16.5 has a fixed tolerance
def alarm(drawn, p):
    share = torch.bincount(drawn, minlength=len(p)) / len(drawn)
    return bool((share - p).abs().max() > 0.02)


# %% 16.5 takes the variance for the standard error
def alarm(drawn, p):
    n = len(drawn)
    off = (torch.bincount(drawn, minlength=len(p)) / n - p).abs()
    return bool((off > 5 * p * (1 - p) / n).any())


# %% 16.5 leaves out the impossible options
def alarm(drawn, p):
    n, some = len(drawn), p > 0
    off = (torch.bincount(drawn, minlength=len(p)) / n - p).abs()
    return bool((off[some] > 5 * (p * (1 - p) / n).sqrt()[some]).any())


# %% 16.5 forgets the number of draws
def alarm(drawn, p):
    off = (torch.bincount(drawn, minlength=len(p)) / len(drawn) - p).abs()
    return bool((off > 5 * p * (1 - p)).any())


# %% 16.6 puts minus infinity
def entropy_of_legal(logits, legal):
    logp = logits.masked_fill(~legal, -torch.inf).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


# %% 16.6 hides the NaN afterwards
def entropy_of_legal(logits, legal):
    logp = logits.masked_fill(~legal, -torch.inf).log_softmax(-1)
    return -torch.where(legal, logp.exp() * logp, 0.0).sum(-1)


# %% 16.6 drops the illegal moves without sharing out their part
def entropy_of_legal(logits, legal):
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp * legal).sum(-1)


# %% 16.6 sets illegal logits to zero
def entropy_of_legal(logits, legal):
    logp = (logits * legal).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
