"""Turns templates into sentences, and keeps track of who is being talked about.

A template is text with `[one|another]` choices (they nest) and `{X}`, `{X.form}` references to the story's cast:
`{A}` is a name, `{A~}` a name or, where it is unambiguous, a pronoun, `{A.his}` a pronoun's form, `{O.a}` "a red kite",
`{P.at}` "in the dark forest". `^` capitalises the next letter.
"""

import random
import re

from words import ADJECTIVES, ANIMALS, PET_NAMES, PLACES, THINGS, TRADES, TRAITS, TRAIT_SHOWS, WEATHER
from world import RESIDENTS

CHOICE = re.compile(r"\[([^\[\]]*)\]")
REFERENCE = re.compile(r"\{(\w+)([.~]?)(\w*)\}")
SENTENCE_START = re.compile(r'(?:^|(?<!Mr)(?<!Mrs)\. |\." |[!?] )(["]?)([a-z])')
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou](?!ne\b)(?!ni)(?!se))")
PRONOUNS = {"he": dict(he="he", him="him", his="his", himself="himself"),
            "she": dict(he="she", him="her", his="her", himself="herself"),
            "it": dict(he="it", him="it", his="its", himself="itself")}


class Person:
    """Somebody who acts: a child, a grown-up with a trade, or an animal."""

    def __init__(self, name, gender, kind, trait="", aliases=(), info=None):
        self.name, self.gender, self.kind, self.trait, self.info = name, gender, kind, trait, info
        self.aliases = aliases

    def form(self, form, rng):
        if form in PRONOUNS[self.gender]:
            return PRONOUNS[self.gender][form]
        if form == "name":
            return self.name
        if form == "kind":
            return self.kind
        if form == "full":
            return f"{self.info.given} {self.info.surname}"
        if form == "the":
            return f"the {self.kind}"
        if form == "trait":
            return self.trait
        if form == "shows":
            return TRAIT_SHOWS[self.trait]
        if form == "s":
            return f"{self.form('', rng)}'s"
        return rng.choice(self.aliases) if self.aliases else self.name


class Thing:
    """An object with an adjective that stays with it to the end."""

    def __init__(self, adjective, noun, use, sign):
        self.adjective, self.noun, self.use, self.sign = adjective, noun, use, sign

    def form(self, form, rng):
        return {"": f"the {self.adjective} {self.noun}", "a": f"a {self.adjective} {self.noun}", "n": self.noun,
                "full": f"{self.adjective} {self.noun}", "adj": self.adjective, "use": self.use, "sign": self.sign,
                "short": f"the {self.noun}"}[form]


class Place:
    """Somewhere to go, and what is seen there."""

    def __init__(self, name, at, sights=()):
        self.name, self.at, self.sights = name, at, sights

    def form(self, form, rng):
        return {"": self.name, "at": f"{self.at} {self.name}", "see": rng.choice(self.sights) if self.sights else ""}[form]


class Teller:
    """One story in the making."""

    def __init__(self, rng: random.Random):
        self.rng, self.cast, self.subject = rng, {}, None
        self.paragraphs = [[]]
        self.used, self.residents = set(), []
        self.weather = rng.choice(list(WEATHER))
        self.time = rng.choice(["morning", "morning", "afternoon"])

    # -- casting ---------------------------------------------------------------------------------------------------

    def pick(self, options):
        """A choice that this story has not made before."""
        free = [o for o in options if str(o) not in self.used]
        choice = self.rng.choice(free)
        self.used.add(str(choice))
        return choice

    def child(self, key, stranger=False):
        """The first child is the hero, whose town this is; the others are friends of the hero, unless strangers."""
        if not self.residents or stranger:
            resident = self.rng.choice(RESIDENTS)
            while resident.given in [r.given for r in self.residents]:
                resident = self.rng.choice(RESIDENTS)
        else:
            resident = self.residents[0].friends[len(self.residents) - 1]
        self.residents.append(resident)
        self.cast[key] = Person(resident.given, resident.gender, "boy" if resident.gender == "he" else "girl", resident.trait,
                                info=resident)
        return self.cast[key]

    def trader(self, key, trade=None):
        """Who follows this trade (or any) in the hero's town."""
        trade = next(t for t in TRADES if t[0] == trade) if trade else self.pick(TRADES)
        self.used.add(str(trade))
        surname, gender = self.residents[0].town.traders[trade[0]]
        title = ("Mr. " if gender == "he" else "Mrs. ") + surname
        self.cast[key] = Person(title, gender, trade[0], aliases=(title, f"the {trade[0]}"), info=trade)
        at, *sights = next((p[1:] for p in PLACES if p[0] == trade[1]), ["at"])
        self.cast[key + "place"] = Place(trade[1], at, sights)
        self.cast[key + "doing"] = trade[4]
        return self.cast[key]

    def animal(self, key, able=None):
        kinds = [a for a in ANIMALS if able is None or a[3] == able]
        kind = self.pick(kinds)
        person = Person(self.pick(PET_NAMES), self.rng.choice(["he", "she"]), kind[0], self.pick(TRAITS), (), kind)
        self.cast[key] = person
        return person

    def thing(self, key, known=None, adjective=None):
        noun, use, sign = known or self.pick(THINGS)
        self.used.add(str((noun, use, sign)))
        self.cast[key] = Thing(adjective or self.pick(ADJECTIVES), noun, use, sign)
        return self.cast[key]

    def place(self, key):
        name, at, *sights = self.pick(PLACES)
        self.cast[key] = Place(name, at, sights)
        return self.cast[key]

    # -- telling ---------------------------------------------------------------------------------------------------

    def expand(self, text):
        """Resolves choices, then references."""
        while (found := CHOICE.search(text)):
            text = text[: found.start()] + self.rng.choice(found[1].split("|")) + text[found.end():]
        mentioned = []

        def refer(match):
            key, mark, form = match.groups()
            entity = self.cast[key]
            if isinstance(entity, str):
                return self.expand(entity)
            if isinstance(entity, Person):
                known = self.subject is entity
                if all(entity is not m for m in mentioned):
                    mentioned.append(entity)
                if mark == "~":
                    form = "he" if known and self.rng.random() < 0.75 else ""
            return entity.form(form, self.rng)

        text = REFERENCE.sub(refer, text)
        if mentioned:
            alone = [m for m in mentioned if m.gender == mentioned[0].gender]
            self.subject = mentioned[0] if len(alone) == 1 else None
        return text

    def say(self, text, **more):
        """Adds a sentence (or a few)."""
        self.cast.update(more)
        text = ARTICLE.sub(r"\1n ", self.expand(text))
        text = SENTENCE_START.sub(lambda m: m[0][:-1] + m[2].upper(), text)
        text = re.sub(r"\^(.)", lambda m: m[1].upper(), text)
        self.paragraphs[-1].append(text)

    def maybe(self, chance, text, **more):
        """Says it with some probability."""
        if self.rng.random() < chance:
            self.say(text, **more)

    def para(self):
        """Begins a paragraph; the reader needs a name again."""
        if self.paragraphs[-1]:
            self.paragraphs.append([])
        self.subject = None

    def text(self):
        return "\n".join(" ".join(p) for p in self.paragraphs if p)

    # -- weather and time ------------------------------------------------------------------------------------------

    def sky(self, stage):
        """0: how the day begins, 1: how it goes on, 2: how it ends."""
        return self.expand(self.rng.choice(WEATHER[self.weather][stage]))
