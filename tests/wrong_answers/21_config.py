"""Plausible wrong answers to the exercises of chapter 21: each replaces an answer cell."""
# %% 21.1 turns the quotient round
def same_discount_in_time(gamma, old, new):
    return gamma ** (old / new)

# %% 21.1 stretches the horizon, which is right for short steps only
def same_discount_in_time(gamma, old, new):
    return 1 - (1 - gamma) * new / old

# %% 21.1 scales the discount
def same_discount_in_time(gamma, old, new):
    return gamma * old / new

# %% 21.1 takes the discount for one of a frame
def same_discount_in_time(gamma, old, new):
    return gamma ** new

# %% 21.2 gives the mean of all steps
def looked_at(config, e):
    return cost(config)["m_reuse"]

# %% 21.2 lets the memory grow while nothing is collected
def looked_at(config, e):
    m, s = config.train_m, config.collect.steps
    return sum(m.steps * m.batch * m.segment / (s * (i + 1))
               for i in range(max(e, m.start), config.epochs))

# %% 21.2 forgets that M begins later
def looked_at(config, e):
    m, s = config.train_m, config.collect.steps
    return sum(m.steps * m.batch * m.segment / (s * min(i + 1, config.collecting))
               for i in range(e, config.epochs))

# %% 21.2 counts segments in place of steps
def looked_at(config, e):
    m, s = config.train_m, config.collect.steps
    return sum(m.steps * m.batch / (s * min(i + 1, config.collecting))
               for i in range(max(e, m.start), config.epochs))

# %% 21.2 is off by one in the rows that are stored
def looked_at(config, e):
    m, s = config.train_m, config.collect.steps
    return sum(m.steps * m.batch * m.segment / (s * min(i, config.collecting))
               for i in range(max(e, m.start), config.epochs))

# %% 21.3 forgets whole rounds
def bill(epochs, learn_on, steps, num_envs, updates, start, batch, horizon):
    S = (epochs - learn_on) * steps
    U = updates * max(0, epochs - start)
    return S, U, U * batch * (horizon - 1) / S

# %% 21.3 rounds down
def bill(epochs, learn_on, steps, num_envs, updates, start, batch, horizon):
    S = (epochs - learn_on) * num_envs * max(1, steps // num_envs)
    U = updates * max(0, epochs - start)
    return S, U, U * batch * (horizon - 1) / S

# %% 21.3 lets a short run have a negative number of updates
def bill(epochs, learn_on, steps, num_envs, updates, start, batch, horizon):
    S = (epochs - learn_on) * num_envs * math.ceil(steps / num_envs)
    U = updates * (epochs - start)
    return S, U, U * batch * (horizon - 1) / S

# %% 21.3 counts observations as steps
def bill(epochs, learn_on, steps, num_envs, updates, start, batch, horizon):
    S = (epochs - learn_on) * num_envs * math.ceil(steps / num_envs)
    U = updates * max(0, epochs - start)
    return S, U, U * batch * horizon / S

# %% 21.3 counts the steps for each environment
def bill(epochs, learn_on, steps, num_envs, updates, start, batch, horizon):
    S = (epochs - learn_on) * num_envs * steps
    U = updates * max(0, epochs - start)
    return S, U, U * batch * (horizon - 1) / S

# %% 21.4 counts the horizon in full
def room_for(context, horizon, burn_in, no_targets, num_envs):
    segment = max(context + horizon, no_targets + 1, 2)
    return segment, num_envs * (max(segment, burn_in) + 1)

# %% 21.4 forgets the targets
def room_for(context, horizon, burn_in, no_targets, num_envs):
    segment = max(context + horizon - 1, 2)
    return segment, num_envs * (max(segment, burn_in) + 1)

# %% 21.4 forgets the row more
def room_for(context, horizon, burn_in, no_targets, num_envs):
    segment = max(context + horizon - 1, no_targets + 1, 2)
    return segment, num_envs * max(segment, burn_in)

# %% 21.4 forgets the burn-in
def room_for(context, horizon, burn_in, no_targets, num_envs):
    segment = max(context + horizon - 1, no_targets + 1, 2)
    return segment, num_envs * (segment + 1)

# %% 21.4 lets all environments share one ring
def room_for(context, horizon, burn_in, no_targets, num_envs):
    segment = max(context + horizon - 1, no_targets + 1, 2)
    return segment, max(segment, burn_in) + 1

# %% 21.5 uses the approximation for many updates
def decay_that_leaves(share, lr, updates):
    return -math.log(share) / (lr * updates)

# %% 21.5 forgets the learning rate
def decay_that_leaves(share, lr, updates):
    return 1 - share ** (1 / updates)

# %% 21.5 takes the same amount each time, in place of the same share
def decay_that_leaves(share, lr, updates):
    return (1 - share) / (lr * updates)

# %% 21.5 forgets the number of updates
def decay_that_leaves(share, lr, updates):
    return (1 - share) / lr

# %% 21.6 lets a refusal stop all
def one_at_a_time(config, choices):
    return [config.change({name: value}) for name, values in choices.items() for value in values]

# %% 21.6 keeps what is warned of
def one_at_a_time(config, choices):
    found = []
    for name, values in choices.items():
        for value in values:
            try:
                other = config.change({name: value})
            except UserError:
                continue
            found += [other] if other != config else []
    return found

# %% 21.6 goes on from the last change
def one_at_a_time(config, choices):
    found, other = [], config
    for name, values in choices.items():
        for value in values:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SettingsWarning)
                try:
                    other = other.change({name: value})
                except (UserError, SettingsWarning):
                    continue
            found.append(other)
    return found

# %% 21.6 runs the base again
def one_at_a_time(config, choices):
    found = [config]
    for name, values in choices.items():
        for value in values:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SettingsWarning)
                try:
                    found.append(config.change({name: value}))
                except (UserError, SettingsWarning):
                    continue
    return found
