"""Plausible wrong answers to the exercises of 14_world_model: every check must refuse them."""

# %% 14.1 has the sign the wrong way round
def price_of_parts(p):
    entropy = lambda q: torch.special.entr(q).sum().item()
    alone = sum(entropy(p.movedim(i, 0).flatten(1).sum(1) if p.ndim > 1 else p)
                for i in range(p.ndim))
    return entropy(p) - alone


# %% 14.1 counts in bits
def price_of_parts(p):
    entropy = lambda q: torch.special.entr(q).sum().item()
    alone = sum(entropy(p.movedim(i, 0).flatten(1).sum(1) if p.ndim > 1 else p)
                for i in range(p.ndim))
    return (alone - entropy(p)) / 0.6931471805599453


# %% 14.1 takes the first token for all
def price_of_parts(p):
    entropy = lambda q: torch.special.entr(q).sum().item()
    first = p.flatten(1).sum(1) if p.ndim > 1 else p
    return p.ndim * entropy(first) - entropy(p)


# %% 14.2 mends only rewards and ends
def transitions(z, action, reward, done, mask):
    return (z[:, :-1], action[:, :-1]), (z[:, 1:], reward[:, :-1], done[:, :-1]), mask[:, :-1]


# %% 14.2 mends only the mask
def transitions(z, action, reward, done, mask):
    both = mask[:, :-1] & mask[:, 1:]
    return (z[:, :-1], action[:, :-1]), (z[:, 1:], reward[:, 1:], done[:, 1:]), both


# %% 14.2 predicts the frame that it reads
def transitions(z, action, reward, done, mask):
    now = [x[:, :-1] for x in (z, reward, done)]
    return (z[:, :-1], action[:, :-1]), now, mask[:, :-1] & mask[:, 1:]


# %% 14.3 takes the mean of the two floors
def floor_of_reward_loss(q1, q0, p):
    entropy = lambda q: torch.special.entr(q).sum().item()
    return p * entropy(q1) + (1 - p) * entropy(q0)


# %% 14.3 adds the whole coin
def floor_of_reward_loss(q1, q0, p):
    entropy = lambda q: torch.special.entr(q).sum().item()
    return p * entropy(q1) + (1 - p) * entropy(q0) + entropy(torch.tensor([p, 1 - p]))


# %% 14.3 takes the entropy of the coin alone
def floor_of_reward_loss(q1, q0, p):
    return torch.special.entr(torch.tensor([p, 1 - p])).sum().item()


# %% 14.4 gives the expected reward
def published_reading(R, p):
    return p * R


# %% 14.4 takes the mean before symlog
def published_reading(R, p):
    return symexp(symlog(torch.tensor(float(p * R)))).item()


# %% 14.4 reads the mean in symlog space as a reward
def published_reading(R, p):
    return (p * symlog(torch.tensor(float(R)))).item()


# %% 14.5 codes the lamp
def free_code(place, lit):
    return torch.eye(2)[lit]


# %% 14.5 codes the half of the ring
def free_code(place, lit):
    return torch.eye(2)[(place >= (place.max() + 1) // 2).long()]


# %% 14.5 tosses a coin
def free_code(place, lit):
    return torch.full((len(place), 2), 0.5)


# %% 14.5 gives all pictures one symbol
def free_code(place, lit):
    return torch.eye(2)[0 * place]


# %% 14.6 forgets that the dream must go on
def error_of_untold(p_end, p_last, p_on, V, gamma):
    mixture = p_end * p_last + (1 - p_end) * p_on
    return (gamma * ((mixture - p_on) * V).sum()).item()


# %% 14.6 puts the last frames alone in place of the mixture
def error_of_untold(p_end, p_last, p_on, V, gamma):
    return (gamma * (1 - p_end) * ((p_last - p_on) * V).sum()).item()


# %% 14.6 takes the world from the dream the wrong way round
def error_of_untold(p_end, p_last, p_on, V, gamma):
    mixture = p_end * p_last + (1 - p_end) * p_on
    return (gamma * (1 - p_end) * ((p_on - mixture) * V).sum()).item()
