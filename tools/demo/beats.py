"""Scenes that many plots share: the opening, the day, an animal in need, a thing out of reach, the evening."""

from words import REMARKS, TROUBLES


def begin(t):
    """Introduces the hero by what the register says, some of which will return at the end."""
    who = t.residents[0]
    t.cast.update(town=who.town.name, river=who.town.river, famous=who.town.famous, elder=who.elder, saying=who.saying, tune=who.tune,
                  petkind=who.pet_kind, petname=who.pet_name, favorite=who.food, fear=who.fear, month=who.month, dream=who.dream,
                  color=who.color, thing=who.thing[0])
    t.cast["where"] = t.rng.choice(["in {town}", "in {town}, a town known for {famous},", "in {town} on the river {river}"])
    t.say("[Once upon a time|Once|Long ago|Not so long ago] there lived {where} a {A.kind} [named|called] {A.full}, who {A.shows}."
          if t.rng.random() < 0.5 else
          "[{A.full} lived {where}|^{A.full} was a {A.trait} {A.kind} from {town}]. [Everyone knew that {A} {A.shows}|{A~} {A.shows}]."
          .replace("{where}", "in {town} on the river {river}" if t.rng.random() < 0.5 else "in {town}"))
    t.ending = t.rng.choice(["saying", "tune", "dream", "pet", ""])
    facts = {
        "saying": '{A.his} {elder} [often said|used to say|liked to say]: "^{saying}."',
        "tune": '{A~} [had a favorite song|knew one song by heart], and it was called "{tune}".',
        "dream": "{A~} wanted to become a {dream} one day.",
        "pet": "{A~} had a {petkind} [named|called] {petname}.",
        "fear": "{A~} was afraid of [only one thing: {fear}|{fear}].",
        "food": "{A~} never left home without {favorite}.",
        "thing": "For {A.his} birthday in {month} {A~} had got a {color} {thing}.",
        "friends": "{A.his} [best friends|friends] were {friend1} and {friend2}."}
    t.cast.update(friend1=f"{who.friends[0].given} {who.friends[0].surname}", friend2=f"{who.friends[1].given} {who.friends[1].surname}")
    told = t.rng.sample([f for f in facts if f != t.ending and not (f == "thing" and "T" in t.cast)], t.rng.choice([1, 2, 2, 3])) + ([t.ending] if t.ending else [])
    for fact in told:
        t.say(facts[fact])
    t.cast["sky0"] = t.sky(0)


def day(t, doing):
    """The day on which it happens, and what happens on it."""
    season = "" if t.weather == "snow" else "[|| in spring| in autumn]"
    t.say(f"[One {t.time}{season}, {{sky0}}[, and| when] {doing}|One {t.time} {{sky0}}. ^{doing}|"
          f"On a {t.time} like any other {doing}. ^{{sky0}}].")


def end(t):
    """The evening: the weather, and whatever was planted at the beginning."""
    t.para()
    t.maybe(0.6, "[By evening|When it was over|In the end], " + t.sky(2) + ".")
    t.say({
        "saying": '["^{saying}," said {A}, and {A.his} {elder} [smiled|nodded].|"My {elder} was right," [said|thought] {A}. '
                  '"^{saying}."|{A} thought of the words of {A.his} {elder}: "^{saying}."|And from that day on {A} knew what it '
                  'means: "^{saying}."]',
        "tune": '[All the way home|On the way home|That evening] {A} [sang|hummed|whistled] "{tune}"[| from the first note to the last].',
        "dream": '[Years later|When {A} was grown up], {A} really became a {dream}, the best {dream} in {town}[| on the {river}].',
        "pet": '[At home|At the door] {petname} the {petkind} was waiting[ for {A}|, and {A} told {petname} everything].',
        "": "[That night {A} slept [well|like a stone]|{A} went to bed [tired and happy|with a smile]|And {A}, who {A.shows}, "
            "lived happily in {town} for many years|{A} never forgot that day|They still talk about {A.full} in {town}]."}[t.ending])


def meet_animal(t, key, able):
    """An animal in need, whose help is owed from now on. `able` is what it can do (a key of TROUBLES)."""
    t.cast["N"] = t.animal(key, able)
    t.cast.update(food=t.residents[0].food, den=t.cast["N"].info[2])
    t.debt, text = t.rng.choice([
        ("you gave me " + t.cast["food"],
         '[On the way|By the side of the road|Behind a hedge] {A} met a [thin|hungry|tired] {N.kind}. "[I have not eaten since '
         'yesterday|I am so hungry|My stomach is empty]," it said. {A} [had {food} in {A.his} pocket|was carrying {food}] and '
         'gave it to the {N.kind}.'),
        ("you set me free",
         "[On the way|Near a fence|Beside a ditch] {A} heard something. A {N.kind} was caught in [a thorn bush|an old net|a wire "
         "fence], and {A} [carefully|patiently] set it free."),
        ("you brought me home",
         '[On the way|At a corner|Under a tree] a little {N.kind} sat and cried. "I cannot find my way home," it said. {A} '
         '[brought|carried] it back to {den}.')])
    t.say(text)
    t.say('"Thank you," said the {N.kind}. "My name is {N}. [I will not forget this|One day I will help you too|If you ever need '
          'me, call my name]."')


def overcome(t, thing, able, friend=None):
    """The thing is out of reach: the hero fails, then the animal that owes a favour or a borrowed tool succeeds."""
    what, fail, solve, tool, use = t.rng.choice(TROUBLES[able])
    t.cast.update(O=t.cast[thing], what=what, fail=fail, solve=solve, tool=tool, use=use)
    t.say("{O.short} {what}. [First|At once] {A} {fail}. [It was no use|That did not help|So that did not work].")
    if friend:
        t.cast.update(N=t.cast[friend], sound=t.cast[friend].info[1], debt=t.debt)
        t.say('[Then something {sound}|Just then {A} called "{N}!" and something {sound}|Suddenly something {sound} behind {A}]. '
              'It was {N} the {N.kind}! "[Remember, {debt}|Once {debt}], and now I will help you," said {N}. {N.the} {solve}.')
        t.maybe(0.7, '"Thank you, {N}!" [cried|called|said] {A}. "[Now we are even|You are a true friend|I could not have done it '
                     'without you]."')
    else:
        t.trader("H")
        t.say('[So|Then] {A} ran to {Hplace} and asked {H}, who was {Hdoing}. "[Take {tool}|You need {tool}|With {tool} it is '
              'easy]," said {H.name}. {A} thanked {H.him}, {use}, and at last {O} was in {A.his} hands.')
        smalltalk(t, "H")
        t.maybe(0.6, "Before anything else {A} brought {tool} back to {H} [and said thank you|with a polite bow].")


def smalltalk(t, key):
    """A remark about the weather of this very day."""
    t.cast["S"] = t.cast[key]
    t.maybe(0.25, '"' + '^' + t.rng.choice(REMARKS[t.weather]) + '," [said|remarked|laughed] {S}.')
