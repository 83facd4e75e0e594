"""Plausible wrong answers to the exercises of 13_attention: every check must refuse them."""

# %% 13.1 counts the pair that is asked for among the noise
def pairs_at_most(eps, d_k):
    return max(1, int(eps * d_k))


# %% 13.1 takes the root of the squared error
def pairs_at_most(eps, d_k):
    return 1 + int(eps ** 2 * d_k)


# %% 13.1 takes the width of a key for the limit, whatever the error
def pairs_at_most(eps, d_k):
    return d_k + 1


# %% 13.2 forgets that layers hand on
def reach(layers, W, L):
    return W * L


# %% 13.2 counts the token itself
def reach(layers, W, L):
    return layers * (W * L + 1)


# %% 13.2 multiplies the reaches
def reach(layers, W, L):
    return (W * L) ** layers + layers


# %% 13.3 is the faulty function
def keys_as_read(k, L):
    at = torch.arange(len(k)) % L
    return rotate_reference(k, *rotation(at, k.shape[-1]))


# %% 13.3 lets the newest key stand where the reader stands
def keys_as_read(k, L):
    at = torch.arange(len(k)) - len(k) + 1
    return rotate_reference(k, *rotation(at, k.shape[-1]))


# %% 13.3 counts from the newest to the oldest
def keys_as_read(k, L):
    return rotate_reference(k, *rotation(-1 - torch.arange(len(k)), k.shape[-1]))


# %% 13.4 gives an empty slot no weight of its own
def share_of_nothing(scores, w):
    return (w - len(scores)) / w


# %% 13.4 counts all slots as empty
def share_of_nothing(scores, w):
    return (w / (w + scores.exp().sum())).item()


# %% 13.4 believes that a score of zero has no weight
def share_of_nothing(scores, w):
    return 0.0


# %% 13.5 lets every call read to the end
def pairs_computed(T, K, L, g):
    return sum((min(s + g, T) - s) * K * (T * L + (min(s + g, T) - s) * K) for s in range(0, T, g))


# %% 13.5 forgets that questions read each other
def pairs_computed(T, K, L, g):
    return sum((min(s + g, T) - s) * K * min(s + g, T) * L for s in range(0, T, g))


# %% 13.5 takes the last call to be full
def pairs_computed(T, K, L, g):
    return sum(g * K * ((s + g) * L + g * K) for s in range(0, T, g))


# %% 13.6 takes the mean of both parts
def joined(o1, s1, o2, s2):
    return (o1 + o2) / 2


# %% 13.6 overflows
def joined(o1, s1, o2, s2):
    a, b = s1.exp()[..., None], s2.exp()[..., None]
    return (a * o1 + b * o2) / (a + b)


# %% 13.6 weighs with the logarithms themselves
def joined(o1, s1, o2, s2):
    share = (s1 / (s1 + s2))[..., None]
    return share * o1 + (1 - share) * o2
