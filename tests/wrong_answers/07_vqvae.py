"""Plausible wrong answers to the exercises of `nbs/07_vqvae.ipynb`: each check must refuse them."""

# %% 7.1 takes the sum instead of the mean
def gradient_at_the_encoder(h, e, g, beta):
    return g + 2 * beta * (h - e)

# %% 7.1 pushes away from the entry
def gradient_at_the_encoder(h, e, g, beta):
    return g + 2 * beta * (e - h) / h.numel()

# %% 7.1 lets the codebook term move the encoder too
def gradient_at_the_encoder(h, e, g, beta):
    return g + 2 * (1 + beta) * (h - e) / h.numel()

# %% 7.2 moves all entries alike
def share_of_the_way(lr, z, N, D):
    return 2 * lr * (torch.bincount(z, minlength=N) > 0) / D

# %% 7.2 forgets the mean over the numbers of a vector
def share_of_the_way(lr, z, N, D):
    return 2 * lr * torch.bincount(z, minlength=N) / len(z)

# %% 7.2 forgets the two of the square
def share_of_the_way(lr, z, N, D):
    return lr * torch.bincount(z, minlength=N) / (len(z) * D)

# %% 7.3 mends the codebook term only
def v_loss(h, codebook, decode, o, beta):
    e = codebook[torch.cdist(h, codebook).argmin(1)]
    y = decode(h + (e - h).detach())
    code = (h.detach() - e).square().mean()
    commit = (h.detach() - e).square().mean()
    return (o - y).square().mean() + code + beta * commit

# %% 7.3 mends the commitment term only
def v_loss(h, codebook, decode, o, beta):
    e = codebook[torch.cdist(h, codebook).argmin(1)]
    y = decode(h + (e - h).detach())
    code = (h - e).square().mean()
    commit = (h - e.detach()).square().mean()
    return (o - y).square().mean() + code + beta * commit

# %% 7.3 lets the painting move the entries
def v_loss(h, codebook, decode, o, beta):
    e = codebook[torch.cdist(h, codebook).argmin(1)]
    code = (h.detach() - e).square().mean()
    commit = (h - e.detach()).square().mean()
    return (o - decode(e)).square().mean() + code + beta * commit

# %% 7.4 forgets that some vectors still choose it
def updates_until_dead(start, chosen, rho, below):
    return math.floor(math.log(below / start) / math.log(rho)) + 1

# %% 7.4 is one update early
def updates_until_dead(start, chosen, rho, below):
    if chosen >= below:
        return math.inf
    return math.floor(math.log((below - chosen) / (start - chosen)) / math.log(rho))

# %% 7.4 lets the count fall by a constant
def updates_until_dead(start, chosen, rho, below):
    if chosen >= below:
        return math.inf
    return math.floor((start - below) / ((1 - rho) * (start - chosen))) + 1

# %% 7.5 says that the entry fades like its count
def length_left(t, rho):
    return rho**t

# %% 7.5 says that it stays
def length_left(t, rho):
    return 1.0

# %% 7.5 lets the smoothing take its share at once
def length_left(t, rho):
    return 1 / (1 + 1e-5 * t)

# %% 7.6 stops the gradient by rounding
def fsq(h, levels):
    L, u = torch.tensor(levels), h.tanh()
    l = ((u + 1) / 2 * (L - 1)).round().long()
    z = torch.zeros(len(h), dtype=torch.int64)
    for j, n in enumerate(levels):
        z = z * n + l[:, j]
    return 2 * l.to(h) / (L - 1) - 1, z

# %% 7.6 makes the last number the most significant
def fsq(h, levels):
    L, u = torch.tensor(levels), h.tanh()
    l = ((u + 1) / 2 * (L - 1)).round().long()
    z = torch.zeros(len(h), dtype=torch.int64)
    for j, n in reversed(list(enumerate(levels))):
        z = z * n + l[:, j]
    return straight_through(u, 2 * l.to(h) / (L - 1) - 1), z

# %% 7.6 passes tanh straight through as well
def fsq(h, levels):
    L, u = torch.tensor(levels), h.tanh()
    l = ((u + 1) / 2 * (L - 1)).round().long()
    z = torch.zeros(len(h), dtype=torch.int64)
    for j, n in enumerate(levels):
        z = z * n + l[:, j]
    return straight_through(h, 2 * l.to(h) / (L - 1) - 1), z

# %% 7.6 has one level too many
def fsq(h, levels):
    L, u = torch.tensor(levels), h.tanh()
    l = ((u + 1) / 2 * L).round().long()
    z = torch.zeros(len(h), dtype=torch.int64)
    for j, n in enumerate(levels):
        z = z * n + l[:, j]
    return straight_through(u, 2 * l.to(h) / L - 1), z
