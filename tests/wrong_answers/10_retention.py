"""Plausible wrong answers to the exercises of 10_retention: every check must refuse them."""

# %% 10.1 uses the approximation for long windows
def window_for(share, age):
    return max(1.0, -age / torch.tensor(share).log().item())


# %% 10.1 gives the factor in place of the window
def window_for(share, age):
    return share ** (1 / age)


# %% 10.1 lets share fade once per token
def window_for(share, age):
    return age / (1 - share)


# %% 10.2 forgets that the place fades after the ball has left
def read_of_a_place(n, m, w):
    return w * (1 - (1 - 1 / w) ** n)


# %% 10.2 lets the newest write fade once before it is read
def read_of_a_place(n, m, w):
    gamma = 1 - 1 / w
    return gamma ** (m + 1) * w * (1 - gamma**n)


# %% 10.2 takes the limit of a long stay
def read_of_a_place(n, m, w):
    return w * (1 - 1 / w) ** m


# %% 10.3 forgets that the recursion writes and reads
def longest_parallel_row(d_k, d_v):
    return max(1, d_k * d_v // (d_k + d_v))


# %% 10.3 takes the sum of the widths
def longest_parallel_row(d_k, d_v):
    return d_k + d_v


# %% 10.3 is one too long
def longest_parallel_row(d_k, d_v):
    return 2 * d_k * d_v // (d_k + d_v) + 1


# %% 10.4 mends only the order inside a block
def states_of_blocks(k, v, gamma, L):
    S = [torch.zeros(k.shape[-1], v.shape[-1], dtype=k.dtype)]
    fade = gamma ** torch.arange(L).flip(0)
    for k_t, v_t in zip(k.split(L), v.split(L)):
        S.append(gamma * S[-1] + (k_t * fade[:, None]).mT @ v_t)
    return torch.stack(S)


# %% 10.4 mends only what happens between blocks
def states_of_blocks(k, v, gamma, L):
    S = [torch.zeros(k.shape[-1], v.shape[-1], dtype=k.dtype)]
    fade = gamma ** torch.arange(L)
    for k_t, v_t in zip(k.split(L), v.split(L)):
        S.append(gamma**L * S[-1] + (k_t * fade[:, None]).mT @ v_t)
    return torch.stack(S)


# %% 10.4 lets the last token of a block fade too
def states_of_blocks(k, v, gamma, L):
    S = [torch.zeros(k.shape[-1], v.shape[-1], dtype=k.dtype)]
    fade = gamma ** (torch.arange(L).flip(0) + 1)
    for k_t, v_t in zip(k.split(L), v.split(L)):
        S.append(gamma**L * S[-1] + (k_t * fade[:, None]).mT @ v_t)
    return torch.stack(S)


# %% 10.5 forgets that numbers stand closer below 1
def first_window_that_never_forgets(dtype):
    return round(2 / torch.finfo(dtype).eps)


# %% 10.5 forgets the rounding
def first_window_that_never_forgets(dtype):
    return round(1 / torch.finfo(dtype).eps)


# %% 10.5 sends the number halfway away from 1
def first_window_that_never_forgets(dtype):
    return round(4 / torch.finfo(dtype).eps) + 1


# %% 10.6 divides running products
def mask_of_factors(g):
    A = g.cumprod(0)
    return (A[:, None] / A).tril()


# %% 10.6 lets the own write of a token fade
def mask_of_factors(g):
    n = len(g)
    kept = torch.ones(n, n, dtype=torch.bool).tril()
    return torch.where(kept, g[:, None], 1.0).cumprod(0).tril()


# %% 10.6 has rows and columns the wrong way round
def mask_of_factors(g):
    n = len(g)
    later = torch.ones(n, n, dtype=torch.bool).tril(-1)
    return torch.where(later, g[:, None], 1.0).cumprod(0).tril().T


# %% 10.6 takes the newest factor to the power of the age
def mask_of_factors(g):
    i = torch.arange(len(g))
    return (g[:, None] ** (i[:, None] - i).clamp(min=0)).tril()
