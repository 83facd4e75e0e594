"""Plausible wrong answers to the exercises of chapter 22: each replaces an answer cell."""
# %% 22.1 forgets the square
def episodes_needed(returns, target):
    s = np.std(returns, ddof=1)
    return max(2, int(np.ceil(s / target)))

# %% 22.1 rounds down
def episodes_needed(returns, target):
    s = np.std(returns, ddof=1)
    return max(2, int((s / target) ** 2))

# %% 22.1 divides by E in place of E - 1
def episodes_needed(returns, target):
    return max(2, int(np.ceil((np.std(returns) / target) ** 2)))

# %% 22.1 says how many more are needed
def episodes_needed(returns, target):
    s = np.std(returns, ddof=1)
    return max(2, int(np.ceil((s / target) ** 2)) - len(returns))

# %% 22.2 has the wrong sign
def bias_of_the_first(returns, lengths, n, E):
    running = np.sum(returns * lengths) / np.sum(lengths)
    return (n - 1) / E * (running - np.mean(returns))

# %% 22.2 throws n episodes away
def bias_of_the_first(returns, lengths, n, E):
    running = np.sum(returns * lengths) / np.sum(lengths)
    return n / E * (np.mean(returns) - running)

# %% 22.2 believes that the episodes thrown away are typical
def bias_of_the_first(returns, lengths, n, E):
    return 0.0

# %% 22.2 forgets to divide by the mean length
def bias_of_the_first(returns, lengths, n, E):
    return -(n - 1) / E * np.cov(returns, lengths)[0, 1]

# %% 22.3 mends the reward only
def first_returns(rewards, ends, max_steps, E):
    returns, capped, total, length = [], 0, 0.0, 0
    for reward, end in zip(rewards, ends):
        total, length = total + reward, length + 1
        if len(returns) < E and (end or length == max_steps):
            capped += length == max_steps
            returns.append(total)
            total, length = 0.0, 0
    return returns, capped

# %% 22.3 mends the count only
def first_returns(rewards, ends, max_steps, E):
    returns, capped, total, length = [], 0, 0.0, 0
    for reward, end in zip(rewards, ends):
        if len(returns) < E and (end or length == max_steps):
            capped += not end
            returns.append(total)
            total, length = 0.0, 0
        total, length = total + reward, length + 1
    return returns, capped

# %% 22.3 counts cut episodes behind the last one
def first_returns(rewards, ends, max_steps, E):
    returns, capped, total, length = [], 0, 0.0, 0
    for reward, end in zip(rewards, ends):
        total, length = total + reward, length + 1
        if end or length == max_steps:
            capped += not end
            returns.append(total)
            total, length = 0.0, 0
    return returns[:E], capped

# %% 22.3 throws cut episodes away
def first_returns(rewards, ends, max_steps, E):
    returns, capped, total, length = [], 0, 0.0, 0
    for reward, end in zip(rewards, ends):
        total, length = total + reward, length + 1
        if end or length == max_steps:
            if end:
                returns.append(total)
            capped += not end
            total, length = 0.0, 0
    return returns[:E], capped

# %% 22.4 takes the growth for large k
def flattered_by(k, sem):
    return sem * (2 * np.log(k)) ** 0.5

# %% 22.4 believes that errors cancel
def flattered_by(k, sem):
    return 0.0

# %% 22.4 takes the mean of the size of one error
def flattered_by(k, sem):
    return sem * (2 / np.pi) ** 0.5

# %% 22.4 takes the chance of k errors for the sum of k chances
def flattered_by(k, sem):
    x = np.linspace(-8, 8, 4_001)
    density = np.exp(-x**2 / 2)
    below = np.cumsum(density) / np.sum(density)
    return sem * float(np.sum(x[1:] * np.diff(np.minimum(1, k * below))))

# %% 22.5 shifts the error too
def mean_over_games(returns):
    means, errors = [], []
    for game, R in returns.items():
        low, high = ATARI_SCORES[game]
        means.append((np.mean(R) - low) / (high - low))
        errors.append((np.std(R, ddof=1) / len(R)**0.5 - low) / (high - low))
    return np.mean(means), np.sqrt(np.sum(np.square(errors))) / len(errors)

# %% 22.5 takes the mean of the errors
def mean_over_games(returns):
    means, errors = [], []
    for game, R in returns.items():
        low, high = ATARI_SCORES[game]
        means.append((np.mean(R) - low) / (high - low))
        errors.append(np.std(R, ddof=1) / len(R)**0.5 / (high - low))
    return np.mean(means), np.mean(errors)

# %% 22.5 normalises by the human score alone
def mean_over_games(returns):
    means, errors = [], []
    for game, R in returns.items():
        low, high = ATARI_SCORES[game]
        means.append(np.mean(R) / high)
        errors.append(np.std(R, ddof=1) / len(R)**0.5 / high)
    return np.mean(means), np.sqrt(np.sum(np.square(errors))) / len(errors)

# %% 22.5 takes the spread between the games for the error
def mean_over_games(returns):
    means = [np.mean(human_normalised(g, np.array(R))) for g, R in returns.items()]
    return np.mean(means), np.std(means) / len(means)**0.5

# %% 22.6 treats the two as independent
def difference(a, b):
    error = ((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a)) ** 0.5
    return np.mean(a) - np.mean(b), error

# %% 22.6 gives the spread of a single pair
def difference(a, b):
    d = np.asarray(a) - np.asarray(b)
    return d.mean(), d.std(ddof=1)

# %% 22.6 divides by the number of all episodes
def difference(a, b):
    d = np.asarray(a) - np.asarray(b)
    return d.mean(), d.std(ddof=1) / (2 * len(d))**0.5

# %% 22.6 takes the difference of the errors
def difference(a, b):
    sem = lambda x: np.std(x, ddof=1) / len(x)**0.5
    return np.mean(a) - np.mean(b), abs(sem(a) - sem(b))
