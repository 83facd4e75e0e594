"""Plausible wrong answers to the exercises of 15_returns: every check must refuse them."""

# %% 15.1 rounds down
def steps_that_hold(share, gamma):
    return max(1, int(math.log(1 - share) / math.log(gamma)))


# %% 15.1 takes the horizon 1 / (1 - γ)
def steps_that_hold(share, gamma):
    return math.ceil(share / (1 - gamma))


# %% 15.1 asks when a single reward has faded to the share
def steps_that_hold(share, gamma):
    return max(1, math.ceil(math.log(share) / math.log(gamma)))


# %% 15.2 forgets that the last step lets in everything
def critic_error_in_return(eps, gamma, lam, H):
    return eps * sum((gamma * lam) ** t * gamma * (1 - lam) for t in range(H - 1))


# %% 15.2 forgets to damp by λ
def critic_error_in_return(eps, gamma, lam, H):
    inner = [gamma**t * gamma * (1 - lam) for t in range(H - 2)]
    return eps * (sum(inner) + gamma ** (H - 2) * gamma * lam)


# %% 15.2 gives the share of the last value only
def critic_error_in_return(eps, gamma, lam, H):
    return eps * gamma ** (H - 1)


# %% 15.3 gives the true value
def value_with_false_end(t, T, gamma):
    return 1 / (1 - gamma)


# %% 15.3 forgets the reward of the last step
def value_with_false_end(t, T, gamma):
    return (1 - gamma ** (T - t)) / (1 - gamma)


# %% 15.3 counts from the wrong end
def value_with_false_end(t, T, gamma):
    return (1 - gamma**t) / (1 - gamma)


# %% 15.4 lets the critic speak after an end
def lambda_return_by_loop(reward, done, value, gamma, lam):
    G = value[:, -1]
    out = [G]
    for t in reversed(range(value.shape[1] - 1)):
        tail = lam * (1 - done[:, t]) * G
        G = reward[:, t] + gamma * ((1 - lam) * value[:, t + 1] + tail)
        out.append(G)
    return torch.stack(out[::-1], 1)


# %% 15.4 cuts the reward of the last step too
def lambda_return_by_loop(reward, done, value, gamma, lam):
    G = value[:, -1]
    out = [G]
    for t in reversed(range(value.shape[1] - 1)):
        G = (1 - done[:, t]) * (reward[:, t] + gamma * ((1 - lam) * value[:, t + 1] + lam * G))
        out.append(G)
    return torch.stack(out[::-1], 1)


# %% 15.4 looks at the end of the next step
def lambda_return_by_loop(reward, done, value, gamma, lam):
    G = value[:, -1]
    out = [G]
    for t in reversed(range(value.shape[1] - 1)):
        G = reward[:, t] + gamma * (1 - done[:, t + 1]) * ((1 - lam) * value[:, t + 1] + lam * G)
        out.append(G)
    return torch.stack(out[::-1], 1)


# %% 15.4 takes the value of the same step
def lambda_return_by_loop(reward, done, value, gamma, lam):
    G = value[:, -1]
    out = [G]
    for t in reversed(range(value.shape[1] - 1)):
        G = reward[:, t] + gamma * (1 - done[:, t]) * ((1 - lam) * value[:, t] + lam * G)
        out.append(G)
    return torch.stack(out[::-1], 1)


# %% 15.5 takes a cut for an end
def lambda_return_with_cuts(reward, done, cut, value, after, gamma, lam):
    G = value[:, -1]
    out = [G]
    for t in reversed(range(value.shape[1] - 1)):
        over = torch.maximum(done[:, t], cut[:, t])
        G = reward[:, t] + gamma * (1 - over) * ((1 - lam) * after[:, t] + lam * G)
        out.append(G)
    return torch.stack(out[::-1], 1)


# %% 15.5 lets the chain run into the next episode
def lambda_return_with_cuts(reward, done, cut, value, after, gamma, lam):
    G = value[:, -1]
    out = [G]
    for t in reversed(range(value.shape[1] - 1)):
        G = reward[:, t] + gamma * (1 - done[:, t]) * ((1 - lam) * after[:, t] + lam * G)
        out.append(G)
    return torch.stack(out[::-1], 1)


# %% 15.5 keeps only the share 1 - λ of the critic at a cut
def lambda_return_with_cuts(reward, done, cut, value, after, gamma, lam):
    G = value[:, -1]
    out = [G]
    for t in reversed(range(value.shape[1] - 1)):
        follows = (1 - lam) * after[:, t] + lam * (1 - cut[:, t]) * G
        G = reward[:, t] + gamma * (1 - done[:, t]) * follows
        out.append(G)
    return torch.stack(out[::-1], 1)


# %% 15.6 takes 2.5 % of the numbers
def outliers_without_effect(n):
    return math.ceil(0.025 * n)


# %% 15.6 forgets that the quantile uses two numbers
def outliers_without_effect(n):
    return n - 1 - int(0.975 * (n - 1))


# %% 15.6 counts both ends
def outliers_without_effect(n):
    return n - 1 - int(0.95 * (n - 1)) - 1
