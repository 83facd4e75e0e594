"""Plausible wrong answers to the exercises of `nbs/09_tokenizer.ipynb`: each check must refuse
them."""

# %% 9.1 cuts the map instead of filling it up
def lengths(rows, cols, C, p, n, m):
    patches = (rows // p) * (cols // p)
    return patches + n + m, patches * p**2 * C + n + m

# %% 9.1 forgets that the filling has symbols too
def lengths(rows, cols, C, p, n, m):
    patches = math.ceil(rows / p) * math.ceil(cols / p)
    return patches + n + m, rows * cols * C + n + m

# %% 9.1 makes each channel a token
def lengths(rows, cols, C, p, n, m):
    patches = math.ceil(rows / p) * math.ceil(cols / p)
    return patches * C + n + m, patches * p**2 * C + n + m

# %% 9.2 counts only whole patches
def where_is(s, cols, C, p):
    token, inside = divmod(s, p * p * C)
    Y, X = divmod(token, max(cols // p, 1))
    cell, c = divmod(inside, C)
    return Y * p + cell // p, X * p + cell % p, c

# %% 9.2 forgets the patches
def where_is(s, cols, C, p):
    cell, c = divmod(s, C)
    return cell // cols, cell % cols, c

# %% 9.2 takes the channel for the slowest inside a patch
def where_is(s, cols, C, p):
    token, inside = divmod(s, p * p * C)
    Y, X = divmod(token, math.ceil(cols / p))
    c, cell = divmod(inside, p * p)
    return Y * p + cell // p, X * p + cell % p, c

# %% 9.3 sets the logits to 0
def item_loss(logits, z, sizes):
    real = torch.arange(logits.shape[-1]) < torch.tensor(sizes)[:, None]
    return -(logits * real).log_softmax(-1).gather(-1, z[..., None]).mean()

# %% 9.3 leaves one category too many
def item_loss(logits, z, sizes):
    real = torch.arange(logits.shape[-1]) <= torch.tensor(sizes)[:, None]
    masked = logits.masked_fill(~real, -1e30)
    return -masked.log_softmax(-1).gather(-1, z[..., None]).mean()

# %% 9.3 masks after the softmax
def item_loss(logits, z, sizes):
    log_p = mask_invalid(logits.log_softmax(-1), tuple(sizes))
    return -log_p.gather(-1, z[..., None]).mean()

# %% 9.3 takes the sum instead of the mean
def item_loss(logits, z, sizes):
    log_p = mask_invalid(logits, tuple(sizes)).log_softmax(-1)
    return -log_p.gather(-1, z[..., None]).sum()

# %% 9.4 says that all cells differ
def told_apart(N, C):
    return N**C

# %% 9.4 forgets that channels may have equal values
def told_apart(N, C):
    return math.comb(N, C)

# %% 9.4 divides by the orders of the channels
def told_apart(N, C):
    return N**C // math.factorial(C)

# %% 9.5 forgets that the average of many rows is short
def change_of_one(n):
    return math.sqrt(2) / n

# %% 9.5 takes the new row alone for the change
def change_of_one(n):
    return 1 / math.sqrt(n)

# %% 9.5 says one part of n
def change_of_one(n):
    return 1 / n

# %% 9.6 forgets the mean over the entries
def spread_left(lr, N, t):
    return (1 - 2 * lr) ** t

# %% 9.6 forgets the two of the square
def spread_left(lr, N, t):
    return (1 - lr / N) ** t

# %% 9.6 squares the share
def spread_left(lr, N, t):
    return (1 - 2 * lr / N) ** (2 * t)
