"""The register of the world: who lives where, and what is true of them in every story.

These facts are drawn once, from a fixed seed. A reader of many stories can know them by heart; how many of them a model
knows is a matter of its size.
"""

import random

from words import (ADJECTIVES, ANIMALS, BOYS, FAMOUS, FEARS, FOODS, GIRLS, MONTHS, PET_NAMES, PROVERBS, RIVERS, SURNAMES, THINGS,
                   TOWN_ENDS, TRADES, TRAITS, TUNES)

PEOPLE = 3000
TOWNS = 60


class Town:
    """A town: its river, its fame, and who follows which trade there."""

    def __init__(self, name, rng):
        self.name, self.river, self.famous = name, rng.choice(RIVERS), rng.choice(FAMOUS)
        surnames = rng.sample(SURNAMES, len(TRADES))
        self.traders = {trade[0]: (surname, "he" if trade[0] == "ferryman" else rng.choice(["he", "she"]))
                        for trade, surname in zip(TRADES, surnames)}


class Resident:
    """A child of one of the towns, and everything that holds for it."""

    def __init__(self, given, surname, rng, towns):
        self.given, self.surname = given, surname
        self.gender = "he" if given in BOYS else "she"
        self.town, self.trait = rng.choice(towns), rng.choice(TRAITS)
        self.elder = rng.choice(["grandmother", "grandfather", "mother", "father", "aunt", "uncle"])
        self.saying, self.tune = rng.choice(PROVERBS), rng.choice(TUNES)
        self.pet_kind, self.pet_name = rng.choice(ANIMALS)[0], rng.choice(PET_NAMES)
        self.thing, self.color = rng.choice(THINGS), rng.choice(ADJECTIVES)
        self.food, self.fear, self.month = rng.choice(FOODS), rng.choice(FEARS), rng.choice(MONTHS)
        self.dream = rng.choice(TRADES)[0]
        self.friends = []


def build():
    rng = random.Random("world")
    names = rng.sample([s + e for s in SURNAMES for e in TOWN_ENDS], TOWNS)
    towns = [Town(name, rng) for name in names]
    pairs = rng.sample([(g, s) for g in GIRLS + BOYS for s in SURNAMES], PEOPLE)
    people = [Resident(g, s, rng, towns) for g, s in pairs]
    for person in people:
        while len(person.friends) < 2:
            friend = rng.choice(people)
            if friend.given not in [person.given] + [f.given for f in person.friends]:
                person.friends.append(friend)
    return people


RESIDENTS = build()
