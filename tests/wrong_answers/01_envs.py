"""Plausible wrong answers to the exercises of chapter 1: each replaces an answer cell."""
# %% 1.1 forgets the walls
def blind_return(p, half):
    caught = (2 * half + 1) / len(p)
    return caught - (1 - caught)

# %% 1.1 keeps to Eq. (1.4)
def blind_return(p, half):
    return 2 / len(p) - 1

# %% 1.1 forgets that a miss costs 1
def blind_return(p, half):
    column, last = np.arange(len(p)), len(p) - 1
    covered = np.minimum(column + half, last) - np.maximum(column - half, 0) + 1
    return (p * covered).sum() / len(p)

# %% 1.2 counts one move too many
def best_return(rows, cols):
    reached = sum(abs(ball - cols // 2) <= rows for ball in range(cols))
    return 2 * reached / cols - 1

# %% 1.2 says that the best player always catches
def best_return(rows, cols):
    return 1.0

# %% 1.2 counts the balls on one side only
def best_return(rows, cols):
    return 2 * min(rows, cols) / cols - 1

# %% 1.2 forgets the misses
def best_return(rows, cols):
    return min(2 * rows - 1, cols) / cols

# %% 1.3 mends the end only
def collected(env, policy, steps):
    rows, (obs, _) = [], env.reset(seed=0)
    for _ in range(steps):
        action = policy(obs)
        after, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            after, _ = env.reset()
            rows.append((after, 0, 0.0, False, True))
        rows.append((obs, action, reward, terminated, False))
        obs = after
    return rows

# %% 1.3 mends the order, not the truncation
def collected(env, policy, steps):
    rows, (obs, _) = [], env.reset(seed=0)
    for _ in range(steps):
        action = policy(obs)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, terminated or truncated, False))
        if terminated or truncated:
            rows.append((after, 0, 0.0, False, True))
            after, _ = env.reset()
        obs = after
    return rows

# %% 1.3 leaves the final observation out
def collected(env, policy, steps):
    rows, (obs, _) = [], env.reset(seed=0)
    for _ in range(steps):
        action = policy(obs)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, terminated, False))
        obs = env.reset()[0] if terminated or truncated else after
    return rows

# %% 1.3 writes the final observation before the transition that leads to it
def collected(env, policy, steps):
    rows, (obs, _) = [], env.reset(seed=0)
    for _ in range(steps):
        action = policy(obs)
        after, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            rows.append((after, 0, 0.0, False, True))
        rows.append((obs, action, reward, terminated, False))
        obs = env.reset()[0] if terminated or truncated else after
    return rows

# %% 1.4 looks at the first step only
def learnt_value(gamma, steps):
    return (1 - gamma ** steps) / (1 - gamma)

# %% 1.4 gives the truth
def learnt_value(gamma, steps):
    return 1 / (1 - gamma)

# %% 1.4 forgets the reward of the last step
def learnt_value(gamma, steps):
    left = np.arange(steps)
    return ((1 - gamma ** left) / (1 - gamma)).mean()

# %% 1.5 forgets the final observations
def rows_collected(n, steps, length):
    return n * -(-steps // n)

# %% 1.5 counts the ends as if one world played all the steps
def rows_collected(n, steps, length):
    return steps + steps // length

# %% 1.5 rounds down
def rows_collected(n, steps, length):
    each = steps // n
    return n * (each + each // length)

# %% 1.5 gives an episode in progress a last row
def rows_collected(n, steps, length):
    each = -(-steps // n)
    return n * (each - (-each // length))

# %% 1.6 lets the wind blow only while the paddle moves
def slippery_return(rows, cols, eps):
    caught = 0.0
    for ball in range(cols):
        P = np.zeros((cols, cols))
        for i in range(cols):
            P[i, i + np.sign(ball - i)] += 1 - eps if i != ball else 1
            for move in (-1, 0, 1):
                P[i, min(max(i + move, 0), cols - 1)] += eps / 3 * (i != ball)
        caught += np.linalg.matrix_power(P, rows - 1)[cols // 2, ball] / cols
    return 2 * caught - 1

# %% 1.6 mixes the two values
def slippery_return(rows, cols, eps):
    best = 2 * sum(abs(ball - cols // 2) < rows for ball in range(cols)) / cols - 1
    return (1 - eps) * best + eps * (2 / cols - 1)

# %% 1.6 takes one step too many
def slippery_return(rows, cols, eps):
    caught = 0.0
    for ball in range(cols):
        P = np.zeros((cols, cols))
        for i in range(cols):
            P[i, i + np.sign(ball - i)] += 1 - eps
            for move in (-1, 0, 1):
                P[i, min(max(i + move, 0), cols - 1)] += eps / 3
        caught += np.linalg.matrix_power(P, rows)[cols // 2, ball] / cols
    return 2 * caught - 1
