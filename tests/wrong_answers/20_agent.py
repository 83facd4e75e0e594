"""Plausible wrong answers to the exercises of chapter 20: each replaces an answer cell."""
# %% 20.1 forgets the other action
def temperature_for(gap, p):
    return gap / -math.log(1 - p)

# %% 20.1 turns the quotient round
def temperature_for(gap, p):
    return gap / math.log((1 - p) / p)

# %% 20.1 multiplies by the temperature
def temperature_for(gap, p):
    return math.log(p / (1 - p)) / gap

# %% 20.2 forgets that luck can hit the favourite
def chance_of_favourite(epsilon, sizes):
    return 1 - epsilon

# %% 20.2 throws a coin for each dimension
def chance_of_favourite(epsilon, sizes):
    return math.prod(1 - epsilon + epsilon / n for n in sizes)

# %% 20.2 adds the choices of the dimensions
def chance_of_favourite(epsilon, sizes):
    return 1 - epsilon + epsilon / sum(sizes)

# %% 20.3 counts a token that occurs twice once
def gradient_on_codebook(E, z, w):
    gradient = torch.zeros_like(E)
    gradient[z] = 2 * (E[z] @ w)[:, None] * w
    return gradient

# %% 20.3 moves every row
def gradient_on_codebook(E, z, w):
    return 2 * (E @ w)[:, None] * w

# %% 20.3 forgets the factor of the square
def gradient_on_codebook(E, z, w):
    return torch.zeros_like(E).index_add_(0, z, (E[z] @ w)[:, None] * w)

# %% 20.4 mends the memory of the last game only
def one_step(memory, x, begins, coin, anything, state):
    state = tuple(torch.where(begins[:, None], 0.0, s) for s in state)
    logits, state = memory.decide(x, state)
    favourite = logits.argmax(-1)
    return torch.where(coin, anything, favourite), memory.act(favourite, state)

# %% 20.4 mends what the memory reads only
def one_step(memory, x, begins, coin, anything, state):
    logits, state = memory.decide(x, state)
    action = torch.where(coin, anything, logits.argmax(-1))
    state = memory.act(action, state)
    return action, tuple(torch.where(begins[:, None], 0.0, s) for s in state)

# %% 20.4 clears half of the memory
def one_step(memory, x, begins, coin, anything, state):
    state = (torch.where(begins[:, None], 0.0, state[0]), state[1])
    logits, state = memory.decide(x, state)
    action = torch.where(coin, anything, logits.argmax(-1))
    return action, memory.act(action, state)

# %% 20.4 forgets all games when one begins
def one_step(memory, x, begins, coin, anything, state):
    if begins.any():
        state = tuple(torch.zeros_like(s) for s in state)
    logits, state = memory.decide(x, state)
    action = torch.where(coin, anything, logits.argmax(-1))
    return action, memory.act(action, state)

# %% 20.5 goes the wrong way
def temperature_of(logits, entropy):
    low, high = 1e-6, 1e6
    for _ in range(100):
        T = math.sqrt(low * high)
        q = (logits / T).softmax(-1)
        low, high = (T, high) if -torch.xlogy(q, q).sum() > entropy else (low, T)
    return T

# %% 20.5 takes a straight line from 0 to log N
def temperature_of(logits, entropy):
    return entropy / math.log(len(logits))

# %% 20.5 stops too early
def temperature_of(logits, entropy):
    low, high = 0.0, 10.0
    for _ in range(6):
        T = (low + high) / 2
        q = (logits / T).softmax(-1)
        low, high = (low, T) if -torch.xlogy(q, q).sum() > entropy else (T, high)
    return T

# %% 20.6 takes the divergence the other way round
def paid_less(q, logits, T):
    log_pi = (logits / T).log_softmax(-1)
    return T * (log_pi.exp() * (log_pi - q.log())).sum()

# %% 20.6 forgets the price
def paid_less(q, logits, T):
    log_pi = (logits / T).log_softmax(-1)
    return (q * (q.log() - log_pi)).sum()

# %% 20.6 compares the logits only
def paid_less(q, logits, T):
    return ((logits / T).softmax(-1) - q) @ logits
