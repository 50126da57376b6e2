"""Scenes that many plots share: the opening, the day, an animal in need, a thing out of reach, the evening."""

from words import FOODS, PROVERBS, REMARKS, TROUBLES, TUNES


def begin(t):
    """Introduces the hero, and perhaps a saying or a tune that will return at the end."""
    t.cast["opening"] = t.rng.choice([
        "once upon a time there was", "once there was", "there once lived", "long ago there lived", "not so long ago there was",
        "in a small village lived", "far from any city lived", "in a valley between two mountains lived",
        "at the end of a long road lived", "in a house by the sea lived", "behind seven hills lived"])
    t.say("[{opening} a {A.trait} {A.kind} [named|called] {A}, who {A.shows}|{opening} a [little|young] {A.kind} [named|called] "
          "{A}. [Everyone knew that {A} {A.shows}|{A~} {A.shows}]].")
    t.saying = t.tune = None
    roll = t.rng.random()
    if roll < 0.4:
        t.saying = t.pick(PROVERBS)
        t.cast.update(saying=t.saying, elder=t.rng.choice(["grandmother", "grandfather", "mother", "father", "aunt", "uncle"]))
        t.say('{A.his} {elder} [often said|used to say|liked to say]: "^{saying}."')
    elif roll < 0.6:
        t.tune = t.pick(TUNES)
        t.say('{A~} [had a favorite song|knew only one song by heart], and it was called "{tune}".', tune=t.tune)
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
    if t.saying:
        t.say('["^{saying}," said {A}, and {A.his} {elder} [smiled|nodded].|"My {elder} was right," [said|thought] {A}. '
              '"^{saying}."|{A} thought of the words of {A.his} {elder}: "^{saying}."|And from that day on {A} knew what it '
              'means: "^{saying}."]')
    elif t.tune:
        t.say('[All the way home|On the way home|That evening] {A} [sang|hummed|whistled] "{tune}"[| from the first note to the '
              'last].')
    else:
        t.say("[That night {A} slept [well|like a stone]|{A} went to bed [tired and happy|with a smile]|And {A}, who {A.shows}, "
              "lived happily for many years|{A} never forgot that day|It was the [best|longest] day that {A} could remember].")


def meet_animal(t, key, able):
    """An animal in need, whose help is owed from now on. `able` is what it can do (a key of TROUBLES)."""
    t.cast["N"] = t.animal(key, able)
    t.cast.update(food=t.rng.choice(FOODS), den=t.cast["N"].info[2])
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
