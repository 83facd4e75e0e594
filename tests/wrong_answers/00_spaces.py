"""Plausible wrong answers to the exercises of chapter 0: each replaces an answer cell."""
# %% 0.1 forgets what was known before the first hum
def chance_broken(quiet, loud, start, hum):
    weight = hum[:, 0] ** quiet * hum[:, 1] ** loud
    return weight[1] / weight.sum()

# %% 0.1 takes the two hums for one another
def chance_broken(quiet, loud, start, hum):
    weight = start * hum[:, 1] ** quiet * hum[:, 0] ** loud
    return weight[1] / weight.sum()

# %% 0.1 gives the joint chance and does not normalise
def chance_broken(quiet, loud, start, hum):
    return (start * hum[:, 0] ** quiet * hum[:, 1] ** loud)[1]

# %% 0.1 gives the odds
def chance_broken(quiet, loud, start, hum):
    weight = start * hum[:, 0] ** quiet * hum[:, 1] ** loud
    return weight[1] / weight[0]

# %% 0.2 forgets that the episode may be over
def steady_value(gamma, end):
    return 1 / (1 - gamma)

# %% 0.2 discounts the first reward too
def steady_value(gamma, end):
    keep = gamma * (1 - end)
    return keep / (1 - keep)

# %% 0.2 lets the end come before the first reward
def steady_value(gamma, end):
    return (1 - end) / (1 - gamma * (1 - end))

# %% 0.3 multiplies the two answers
def fooling_table(loud, end):
    return np.outer([0.5, 0.5], [1 - end, end])

# %% 0.3 makes the hum loud with the same chance in both columns
def fooling_table(loud, end):
    return np.outer([1 - loud, loud], [1 - end, end])

# %% 0.3 exchanges the axes
def fooling_table(loud, end):
    goes_on = (1 - end) * np.array([1 - loud, loud])
    return np.stack([goes_on, 0.5 - goes_on], axis=0)

# %% 0.4 mends the first hum only
def filtered(o, a, start, hum, step):
    b = start * hum[:, o[0]]
    for n in range(1, len(o)):
        b = b @ step[a[n - 1], :, :, o[n]].sum(-1)
    return b / b.sum()

# %% 0.4 mends the ends only
def filtered(o, a, start, hum, step):
    b = start
    for n in range(1, len(o)):
        b = b @ step[a[n - 1], :, :, o[n], 0]
    return b / b.sum()

# %% 0.4 takes the condition for its opposite
def filtered(o, a, start, hum, step):
    b = start * hum[:, o[0]]
    for n in range(1, len(o)):
        b = b @ step[a[n - 1], :, :, o[n], 1]
    return b / b.sum()

# %% 0.5 lets the first switch run fastest
def joint_token(tokens, nvec):
    number, weight = np.zeros(len(tokens), np.int64), 1
    for column, size in zip(np.asarray(tokens).T, nvec):
        number, weight = number + column * weight, weight * size
    return number

# %% 0.5 adds the tokens
def joint_token(tokens, nvec):
    return np.asarray(tokens).sum(1)

# %% 0.5 runs over the rows in place of the switches
def joint_token(tokens, nvec):
    number = np.zeros(len(nvec), np.int64)
    for row in np.asarray(tokens):
        number = number * np.asarray(nvec) + row
    return number

# %% 0.6 counts the cell of a grid as one symbol
def rows_of_the_table(layout, nvec, t):
    observations = prod(g.vocab[0] ** g.count for g in layout.groups)
    return (observations * prod(nvec)) ** t

# %% 0.6 adds the steps in place of multiplying
def rows_of_the_table(layout, nvec, t):
    return prod(prod(g.vocab) ** g.count for g in layout.groups) * prod(nvec) * t

# %% 0.6 forgets the actions
def rows_of_the_table(layout, nvec, t):
    return prod(prod(g.vocab) ** g.count for g in layout.groups) ** t
