"""The plot families. Each casts its people and things, and tells a story from goal to resolution.

Facts fixed early (a colour, a promise, a saying, a way, a number, who owns what) come back later, in most families more
than once, so that a reader has to remember them.
"""

from beats import begin, day, end, meet_animal, overcome, smalltalk
from words import (ADJECTIVES, BAKED, BAKED_IN_OVEN, BUILDS, CHORES, DANGERS, DUTIES, FOODS, INGREDIENTS, LANDMARKS, NUMBERS,
                   RIDDLES, SECRETS, SHIPS, TROUBLES)


def a(noun):
    """The noun with its article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def count(number, one, many):
    """"one bun", "four buns"."""
    return f"{NUMBERS[number]} {one if number == 1 else many}"


def lost_thing(t):
    """Something is lost; the hero walks back through the day's places."""
    hero = t.child("A").info
    t.thing("T", hero.thing, hero.color)
    begin(t)
    t.cast["giver"] = t.rng.choice(["grandmother", "godfather", "best friend", "cousin", "oldest sister", "teacher"])
    t.say("{A~} owned {T.a}, [a present from {A.his} {giver}|which came from {A.his} {giver}]. {A~} used it {T.use}.")
    able = t.rng.choice(list(TROUBLES))
    t.para()
    t.place("P"), t.place("Q"), t.place("R")
    day(t, "{A} took {T} along and went first to {P}, then to {Q}, and last to {R}")
    friend = "F" if t.rng.random() < 0.6 else None
    if friend:
        meet_animal(t, friend, able)
    t.para()
    t.say('[In the evening|When {A} came home] {A.his} [bag|pocket] was empty. {T} was gone! "[Where is my {T.n}?|I have lost my '
          '{T.n}!|Oh no, my {T.n}!]" cried {A}. "I was at {R}, before that at {Q}, and before that at {P}. I will go back the same way."')
    found = t.rng.randrange(3)
    for step, key in enumerate(["R", "Q", "P"][: found + 1]):
        t.cast["X"] = t.cast[key]
        t.say("[{A~} went to {X}|So {A} walked to {X}|Now {A} searched {X}], where {X.see}." if step == 0 else
              "[Then {A~} went to {X}|Next came {X}|Then {A} searched {X}], where {X.see}.")
        if step == found:
            t.say("[There {A~} saw it|There, at last, was something {T.adj}|And look]: {T.sign}.")
        else:
            t.say("[But there was no {T.n}|No {T.n} lay there|There was nothing but [leaves|stones|dust]|{A~} looked everywhere, "
                  "but the {T.n} was not there].")
            t.maybe(0.3, "[And|But] {sky1}.", sky1=t.sky(1))
    t.para()
    overcome(t, "T", able, friend)
    t.para()
    t.say('{A} [hugged|held|pressed] {T} [tightly|with both hands] and [walked|ran|went] home from {X}. "[I will never lose you '
          'again|Next time I will take better care of you]," [said|promised] {A}.')
    end(t)


def remedy(t):
    """Somebody is ill and three ingredients must be found, remembered and mixed in order."""
    t.child("A")
    begin(t)
    ill = t.rng.choice(["little brother", "little sister", "best friend", "grandmother", "grandfather", "neighbor"])
    illness = t.rng.choice(["bad cough", "high fever", "sore throat", "terrible cold"])
    parts = [t.pick([i for i in INGREDIENTS if i[1] != "doctor"]) for _ in range(3)]
    t.cast.update(ill=ill, illness=illness, i1=parts[0][0], i2=parts[1][0], i3=parts[2][0], n=NUMBERS[t.rng.randint(3, 9)])
    t.para()
    day(t, "the {ill} of {A} [lay in bed|woke up] with a {illness}")
    t.trader("D", "doctor")
    stirred = t.rng.random() < 0.5
    t.say('{A} [ran|hurried] to {Dplace} and asked {D} for help. "You need three things," said {D.name}. "First {i1}, then {i2}, and '
          'last {i3}. Mix them in this order' + (' and stir {n} times."' if stirred else ', and [do not forget any of them|nothing else]."'))
    t.para()
    walk = list(parts)
    if t.rng.random() < 0.5:
        t.rng.shuffle(walk)
    for step, (what, trade) in enumerate(walk):
        t.trader("K", trade)
        t.cast.update(what=what)
        t.say(["[{A} went to {Kplace} for the {what}|[First|To begin with] {A} needed the {what} and went to {Kplace}].",
               "[For the {what} {A} went to {Kplace}|[Next|Then] {A} walked to {Kplace} for the {what}|Now for the {what}: {A} ran to "
               "{Kplace}].",
               "[Nobody had offered {A} the {what} yet|Now {A} had everything but the {what}]. {A} went to {Kplace}."][step])
        smalltalk(t, "K")
        if t.rng.random() < 0.35:
            chore, done = t.pick(CHORES)
            t.say('{K} was {Kdoing}. "You may have it, if you {chore}," said {K.name}. {A} {done}.', chore=chore, done=done)
        else:
            t.say('{K} was {Kdoing}. "[For a sick {ill}? Take it, and good luck|It costs nothing today|I always keep some for a '
                  'friend|For you I have the best in the village]," said {K.name}.')
    t.para()
    t.say("At home {A} took the {i1}, then the {i2}, and last the {i3}, and mixed them in a [bowl|pot|cup]"
          + (" and stirred {n} times." if stirred else "."))
    t.say("The {ill} [drank it to the last drop|took a spoonful and made a face|swallowed it all]. [The next morning the {illness} was "
          'gone|Two days later the {illness} was forgotten]. "[You saved me|Thank you, {A}]," said the {ill}. "[What was in it|What did '
          'you give me]?" "^{i1}, {i2} and {i3}," said {A}.')
    end(t)


def trade_chain(t):
    """Everybody wants what somebody else owns; the exchange is made backwards."""
    t.child("A")
    begin(t)
    length = t.rng.choice([2, 3, 3, 4])
    things = [t.thing(f"T{i}") for i in range(length + 1)]
    people = [t.trader(f"B{i}") for i in range(length)]

    def turn(i):
        t.cast.update(C=people[i], Cplace=t.cast[f"B{i}place"], V=things[i], U=things[i + 1])

    t.para()
    t.cast["W"] = things[0]
    day(t, "{A} saw {W.a} at {B0place}")
    t.say('[{A~} wanted it more than anything in the world|How {A} wished for it|It was exactly what {A} needed {W.use}]. "[What does it '
          'cost|May I have it]?" asked {A}.')
    for i in range(length):
        turn(i)
        if i:
            t.say("[So {A} went to {Cplace}|Next {A} went to {Cplace}|{A} ran to {Cplace}] and asked {C} for {V}.")
        if i < length - 1:
            t.say('"I will give you {V} for {U.a}," said {C}. "[{L.name} the {L.kind} has one|Ask {L.name} the {L.kind}|I know that {L.name} '
                  'the {L.kind} owns one]."', L=people[i + 1])
        else:
            t.say('"You may have {V}," said {C}, "if you give me {U.a}." {A} [laughed|could not believe it], because {U.a} was lying at home, '
                  'and {A} used it only {U.use}.')
    t.para()
    t.say("{A} [fetched|brought] {U} and gave it to {C}, and {C} gave {A.him} {V}.")
    for i in range(length - 2, -1, -1):
        turn(i)
        t.say("[Then|With that] {A} [took|brought|carried] {U} to {C}[| at {Cplace}] and [got|received] {V} [for it|in return].")
    t.para()
    t.say("[Now {W} belonged to {A}|At last {A} held {W}|So {A} came home with {W}]. [And {G} was happy with {Z}|And somewhere {G} was "
          "looking at {Z} and smiling].", G=people[-1], Z=things[length])
    end(t)


def rescue(t):
    """A creature is in danger; the first tool fails, the second works, and thanks come later."""
    t.child("A"), t.child("B"), t.animal("F")
    begin(t)
    t.say("{A.his} best friend was [a {B.trait} {B.kind} called {B.full}|{B.full}, a {B.kind} who {B.shows}].")
    t.para()
    t.place("P")
    day(t, "the two friends went to {P}")
    spot, wrong, second, right = t.rng.choice(DANGERS)
    t.cast.update(spot=spot, wrong=wrong, second=second, right=right, sound=t.cast["F"].info[1], sky1=t.sky(1))
    t.say("[^{P.see}|^{sky1}], and [suddenly|then] they heard a sound. Something {sound}. A [little|young] {F.kind} {spot}!")
    t.say('"[We must help!|Quick, we have to do something!|Do not be afraid, we are coming!]" [cried|called] {A}.')
    t.say("{A} {wrong}.")
    t.say('"[Wait here|Stay here|Do not move]," said {B}. "I will [get|fetch] {second}."')
    t.trader("K")
    t.say("{B} ran to {Kplace}[, where {K} was {Kdoing},|] and [soon came back|came back after a few minutes] with {second}. [Together "
          "they|The two of them] {right}. [The {F.kind} was safe|At last the {F.kind} was free]!")
    t.para()
    t.say('[They dried the {F.kind} with {B.s} {cloth}|They wrapped the {F.kind} in {B.s} {cloth}|They gave the {F.kind} {food}]. [They '
          'called it {F}|"Let us call it {F}," said {B}].', cloth=t.rng.choice(["scarf", "coat", "jacket", "shawl"]), food=t.rng.choice(FOODS))
    if t.rng.random() < 0.6:
        t.thing("T")
        t.para()
        t.say("A {later} later {A} lost {T.a}.", later=t.rng.choice(["week", "month", "year"]))
        t.debt = "you saved me when I " + spot
        overcome(t, "T", t.cast["F"].info[3], "F")
    end(t)


def directions(t):
    """A message goes to a far house: landmarks in order on the way there, and backwards on the way home."""
    t.child("A"), t.trader("M"), t.child("B"), t.thing("T")
    begin(t)
    turns = [t.rng.choice(["left", "right"]) for _ in range(3)]
    back = [{"left": "right", "right": "left"}[d] for d in turns]
    for i in range(3):
        t.cast.update({f"m{i}": t.pick(LANDMARKS), f"d{i}": turns[i], f"r{i}": back[i]})
    t.para()
    day(t, "{M} called {A} to {Mplace}")
    t.say('"Please bring {T.a} to {B.full}, who lives [behind the hills|all alone|in the last house]," said {M.name}. "[The way is easy|Listen '
          'well]. At {m0} you turn {d0}, at {m1} you turn {d1}, and at {m2} you turn {d2}. [Can you remember that|Will you find it]?"')
    t.say('"At {m0} {d0}, at {m1} {d1}, at {m2} {d2}," [repeated|said] {A}, and [took {T} and went|put {T} into a bag and set out].')
    t.para()
    t.say("[Soon|After a while] {A} came to {m0} and turned {d0}.")
    able = t.rng.choice(list(TROUBLES))
    friend = t.rng.random() < 0.45
    if friend:
        meet_animal(t, "F", able)
    t.say("[Then came {m1}|Next {A} saw {m1}|A mile farther on was {m1}], and {A} turned {d1}.")
    t.maybe(0.4, "^{sky1}, but {A} [went on|did not stop].", sky1=t.sky(1))
    if t.rng.random() < 0.5:
        t.say('At {m2} {A} was [tired|thinking of supper|not careful] and turned {r2}. The path [ended at a wall|led straight into a '
              'swamp|grew narrower and narrower]. "^{d2}, not {r2}!" [cried|remembered] {A}, went back to {m2}, and this time turned {d2}.')
    else:
        t.say('At {m2} {A} [stopped to think|stood still for a moment]. ["^{d2}," said {A}, and turned {d2}|Then {A~} remembered and turned '
              '{d2}].')
    if friend:
        t.para()
        t.say("[But what was that|Then it happened]! {A} [stumbled|tripped over a root] and dropped {T}.")
        overcome(t, "T", able, "F")
    t.para()
    t.say('[At last|Before dark] {A} [knocked at the door|stood before the house]. {B} opened. "You brought {T}!" [cried|said] {B}. "[I have '
          'waited for it all week|I need it {T.use}]. [Did {M.name} send you|How did you find the way]?"')
    t.say('[On the way home|Going back] {A} turned {r2} at {m2}, {r1} at {m1} and {r0} at {m0}[, because on the way back everything is the '
          'other way round|]. {M} was waiting at {Mplace}. "[Well done|I knew you would do it], {A}," {M.he} said.')
    end(t)


def riddle(t):
    """A keeper lets nobody pass without an answer; the answer is found along the way."""
    t.child("A"), t.thing("T"), t.place("P"), t.trader("K"), t.trader("L")
    begin(t)
    question, answer = t.pick(RIDDLES)
    others = t.rng.sample([r[1] for r in RIDDLES if r[1] != answer], 2)
    t.cast.update(q=question, a=answer, w1=others[0], w2=others[1], food=t.rng.choice(FOODS),
                  guard=t.rng.choice("troll giant dragon goblin wizard witch raven knight sphinx ghost".split()))
    t.para()
    day(t, "{A} wanted to [fetch|bring home] {T.a} from {P}")
    t.say('But [on the road|at the gate|on the path] a {guard} blocked the way. "[Nobody passes|You shall not pass] without an answer," said '
          'the {guard}. "{q}"')
    t.say('"Is it {w1}?" [asked|tried] {A}. "[No|Wrong|Not at all]," said the {guard}. "[You have one more try|Think again|Come back later]."')
    t.para()
    t.say("{A} went to {Kplace}.")
    smalltalk(t, "K")
    t.say('{A} asked {K}, who was {Kdoing}. "{q}" "[Hm|Let me think|That is hard]," said {K.name}. "[Perhaps|Maybe] '
          '{w2}?" But {A} did not believe it.')
    t.say('Then {A} asked {L} at {Lplace}. {L} [laughed|did not say a word] and pointed at something [on the shelf|in the corner|by the '
          'window]. {A} looked, [and looked again|and thought, and clapped with joy]. "^{a}! [Of course!|That is it!|Why did I not see it?]"')
    t.para()
    t.say('{A} ran back to the {guard}. "[The answer is {a}|It is {a}]," [said|called] {A~}. The {guard} [sighed|grumbled|smiled for the first '
          'time in a hundred years] and [stepped aside|let {A.him} pass].')
    t.say("So {A} came to {P}, where {P.see}, and found {T}. [It looked even better than in the stories|It was worth every step|{T.sign}].")
    t.maybe(0.7, 'On the way home {A} gave the {guard} {food}. "[Nobody ever brought me anything|You are welcome on my road]," said the '
                 '{guard}. "{q} I must [find a harder one|think of something better]."')
    end(t)


def counting(t):
    """So many are made, some are given away, and the sum has to come out right."""
    t.child("A"), t.place("P")
    begin(t)
    one, many = t.pick(BAKED)
    left = total = t.rng.randint(7, 20)
    baked = one in BAKED_IN_OVEN
    t.cast.update(one=one, many=many, aone=a(one), total=count(total, one, many), verb="baked" if baked else "gathered")
    t.para()
    day(t, "{A} {verb} {total}")
    t.say("{A~} put all {total} into a basket and [set out for {P}|went on the way to {P}].")
    gifts = []
    for step in range(t.rng.choice([2, 3, 3, 4])):
        give = min(t.rng.randint(1, 5), left - 1)
        if give < 1:
            break
        left -= give
        gifts.append((t.trader("K"), give))
        t.cast.update(gift=count(give, one, many), left=count(left, one, many), were="was" if left == 1 else "were")
        t.para()
        t.say('[At {Kplace}|Near {Kplace}|On the way past {Kplace}] {A} met {K}, who was {Kdoing}. "[What have you got there|When did I last have '
              '{aone}|Is one of those for me]?" asked {K.name}. {A} gave {K.him} {gift}.')
        smalltalk(t, "K")
        t.say("[Now there {were} {left} in the basket|^{left} {were} left|That left {left}].")
        if step == 0 and left > 4 and t.rng.random() < 0.4:
            t.animal("F")
            left -= 1
            t.say("Then a {F.kind} jumped out of a bush, snatched one {one} and ran away. Now only {left} were left.", left=count(left, one, many))
    t.para()
    t.cast.update(left=count(left, one, many), were="was" if left == 1 else "were")
    t.say("[At {P}|When {A} came to {P}], {P.see}. {A} counted again: there {were} {left}.")
    given = [f"{NUMBERS[n]} to {k.name}" for k, n in gifts]
    t.say('"[Where are all the others|Were there not {total}]?" asked {who}. "I gave {list}," said {A}.',
          who=t.rng.choice(["a friend", "an old woman", "the mayor", "the teacher"]),
          list=", ".join(given[:-1]) + (" and " if given[1:] else "") + given[-1])
    giver, number = t.rng.choice(gifts)
    t.say('[The next day|A week later] {G} knocked at the door and brought {A} {reward}. "For the {gift}," {G.he} said.', G=giver,
          reward=giver.info[2], gift=count(number, one, many))
    end(t)


def promise(t):
    """A promise is nearly forgotten, owned up to and made good."""
    t.child("A"), t.child("B"), t.thing("T"), t.place("P"), t.animal("F"), t.trader("K")
    begin(t)
    task, asked, fault, mend = t.rng.choice(DUTIES)
    t.cast.update(task=task, asked=asked, fault=fault, mend=mend)
    t.para()
    day(t, "{B.full}, a friend of {A}, had to go away [for a day|to see an aunt|to the town]")
    t.say('"Please {task}," said {B}. "[Do you promise|Can I count on you]?" "I promise," said {A}. [And {B} went away with a light heart|{B} gave '
          '{A} {T.a} [as a thank you|for it] and left].')
    t.para()
    t.say("At first {A} [thought of nothing else|was very careful]. But then [a band of musicians came down the road|a {F.kind} ran past with a hat "
          "in its mouth|some children called {A.him}|a man with a dancing {F.kind} came by|a red balloon floated over the roofs], and {A} "
          "[ran|followed] [to {P}|as far as {P}].")
    t.say('^{P.see}. [The time flew|One hour went by, then another|{A} forgot everything else]. [Suddenly|Only when the bell rang] {A} remembered '
          'the words of {B}: "Please {task}."')
    t.say("{A} ran back. [But it was too late|Oh dear]! ^{fault}.")
    t.para()
    t.say("[{A} sat down and cried|For a moment {A} wanted to hide]. [But tears do not help|But hiding does not help]. {A} {mend}.")
    t.maybe(0.5, "{K} from {Kplace} [came by and helped|lent a hand].")
    t.para()
    t.say('[In the evening|The next day] {B} came back. "Did you {asked}?" asked {B}. {A} [could have said yes|looked at the floor]. "[No|Not at '
          'first]," {A} said. "I went to {P} and forgot it. When I came back, {fault}. Then I {mend}."')
    t.say('{B} [was silent for a while|thought about it]. "[You told me the truth|You made it good again]," {B~} said, "and that is worth more than '
          '[anything|{T.a}]." [They shook hands|They laughed together|So they stayed friends].')
    end(t)


def contest(t):
    """Something is built from three parts; it breaks, a rival helps, and the prize is shared."""
    t.child("A"), t.child("B"), t.place("P")
    begin(t)
    thing, parts = t.rng.choice(BUILDS)
    broken = t.rng.choice(parts)
    mine, other = t.rng.sample(ADJECTIVES[:9], 2)
    won = t.rng.random() < 0.5
    t.cast.update(x=thing, p1=parts[0], p2=parts[1], p3=parts[2], mine=mine, other=other, date=t.rng.choice(["Friday", "Saturday", "Sunday"]),
                  best=mine if won else other, bn="the " + broken.removeprefix("a "), was="were" if broken.endswith("s") and broken != "glass" else "was")
    t.para()
    day(t, 'a notice hung on the door of the town hall: "Who can build the best {x}? On {date} at {P}!" {A} read it')
    t.say('{A} [wanted to win|began at once] and needed {p1}, {p2} and {p3}. {B.full}, who {B.shows}, wanted to win too. "My {x} will be {other}," [said|boasted] {B}. "And '
          'mine will be {mine}," said {A}.')
    t.para()
    for part in parts:
        t.trader("K")
        t.say("[{A} got {part} from {K}|^{K} gave {A.him} {part}|{A} went to {Kplace} for {part}|{A} helped {K} at {Kplace} and got {part} for it|{A} found "
              "{part} at {Kplace}, where {K} was {Kdoing}].", part=part)
    t.say("[Day and night|For three days] {A} worked, until the {mine} {x} was ready.")
    t.para()
    t.say("But on {date}, [on the way to {P}|close to {P}], [a goat ran into it|a gust of wind threw it over|a wagon hit it|a big dog jumped on it], and "
          "{bn} {was} [broken|ruined|gone]. {A} [was close to tears|sat down in the road].")
    t.say('[Who came along|And who should come by]? It was {B} with the {other} {x}. "[What happened|Why are you so sad]?" asked {B}. "^{bn}!" said {A}. '
          '"[Take some of mine|I have more than I need|We will find a way]," said {B}. [Together they repaired the {mine} {x}|{B} helped, and soon the {mine} '
          '{x} was whole again].')
    t.para()
    t.say('At {P}, {P.see}. The judge [looked at everything|walked up and down]. "The first prize goes to the {best} {x}!" {W} had won.',
          W=t.cast["A" if won else "B"])
    t.say('"[I could not have done it without {B}|Half of it belongs to {B}]," said {A}[ and shared the prize|].' if won else
          '"[Without your help the {mine} {x} would not be here|You were the better builder]," said {A}, and [shook hands with {B}|clapped the loudest of all].')
    end(t)


def night_light(t):
    """The light goes out in a storm; it must be lit again, and a ship comes home."""
    t.child("A"), t.trader("K"), t.thing("T")
    t.weather = t.rng.choice(["wind", "rain", "fog", "snow"])
    begin(t)
    ship, cargo = t.rng.choice(SHIPS), t.rng.choice("oranges tea salt silk timber coal spices wool copper dates".split())
    t.cast.update(ship=ship, cargo=cargo, sky1=t.sky(1), who=t.rng.choice(["father", "mother", "uncle", "brother", "sister", "grandfather"]),
                  wait=NUMBERS[t.rng.randint(3, 12)] + t.rng.choice([" days", " weeks", " months"]),
                  steps=t.rng.choice(["ninety", "a hundred", "two hundred", "three hundred"]))
    t.say("{A.his} {who} was a sailor on the {ship}, a ship that carried {cargo}[ from far away|]. {A} had been waiting for {wait}.")
    t.para()
    day(t, "the lamp of the lighthouse went out")
    t.say('"[The {ship} is due tonight|Tonight the {ship} is coming home]!" cried {A}. "Without the light [it will run onto the rocks|nobody will find the '
          'harbor]."')
    if t.rng.random() < 0.5:
        able = t.rng.choice(list(TROUBLES))
        t.say("{A} [put on a coat|did not wait] and ran to the keeper's house.")
        meet_animal(t, "F", able)
        t.para()
        t.say('"The lamp needs a new wick," said the old keeper, "and the last one is tied to {T.a}. But I have lost it."')
        overcome(t, "T", able, "F")
        t.say("And the wick was there, [still dry|as good as new].")
    else:
        t.say('{A} ran to {Kplace} and [woke|called] {K}. "[I need oil for the lamp|Have you any oil]?" "[Only a little|Just one bottle]," said {K.name}, '
              '"but take it." ^{sky1}. [Twice {A} fell|The bottle almost slipped away], but {A~} [held on|did not let go].')
    t.say("{A~} climbed {steps} steps of the tower and lit the lamp. [Far over the sea went the light|The light swept over the waves].")
    t.para()
    t.say('[At midnight|Toward morning|An hour later] a bell rang in the harbor. The {ship} had come in, [full of {cargo}|heavy with {cargo}]. The {who} of {A} '
          'jumped ashore. "[We saw nothing at all|We were lost], and then there was a light. Who lit it?" "I did," said {A}. "[All {steps} steps|I climbed '
          '{steps} steps]."')
    t.say("[After {wait} they sat at the table together again|That was how {A} and {A.his} {who} met again after {wait}].")
    end(t)


def inheritance(t):
    """Three friends each get something; the one laughed at proves the most useful."""
    t.child("A"), t.child("B"), t.child("C"), t.thing("X"), t.thing("Y"), t.thing("Z"), t.place("P")
    begin(t)
    t.cast.update(g=t.rng.choice(["queen", "captain", "wizard", "teacher", "old sailor", "mayor"]),
                  lost=t.rng.choice(["the mayor's daughter", "a herd of sheep", "a little boy", "the king's horse", "the baker's twins", "a white calf"]),
                  no1=t.rng.choice(["soon came back with wet feet", "fell asleep under a tree", "turned round at the first corner"]),
                  no2=t.rng.choice(["lost heart in the dark", "slipped into a ditch", "walked in a circle all day"]))
    t.say("{A} had two friends, {B.full} and {C.full}, [and the three did everything together|and they lived next door].")
    t.para()
    day(t, "the {g} [called all three|asked all three to come]")
    t.say('"I am [old|going away]," said the {g}, "and I want to give you something. {B} gets {X.a}, {C} gets {Y.a}, and {A} gets {Z.a}." {B} and {C} laughed. '
          '"What will you [do|ever do] with {Z.a}, {A}?"')
    t.say("{A} [said nothing|only smiled] and [thanked the {g}|took {Z} home].")
    t.para()
    t.say('[Not long after|That year|Soon after that] {lost} got lost near {P}. "[Whoever finds the way|The finder] will get a purse of gold," it was said in the '
          'village.')
    t.say("{B} took {X} and set out, but {no1}. {C} took {Y} and set out, but {no2}. Then {A} took {Z} and went to {P}, where {P.see}.")
    meet_animal(t, "F", t.rng.choice(list(TROUBLES)))
    t.say('{A} showed {F} {Z}: {Z.sign}. "[I have seen it before|I know this {Z.n}]," said {F}, "and I know where to look." {F} led {A} [over stones and '
          'roots|through the bushes|along a small path], and there, [safe and sound|cold and hungry], was {lost}!')
    t.para()
    t.say('{A} got the purse of gold and [shared it with {B} and {C}|bought new shoes for {B} and {C}]. Nobody laughed at {Z} any more. "[Would you trade it for '
          '{X}|Would you like to have {Y} instead]?" asked the {g}. "Never," said {A}.')
    end(t)


def letter(t):
    """A message must be read, kept in mind and acted on."""
    t.child("A"), t.child("B", stranger=True), t.thing("T"), t.place("P"), t.place("Q"), t.trader("K"), t.trader("L")
    begin(t)
    sign, past = t.rng.choice([("knock", "knocked"), ("whistle", "whistled"), ("clap", "clapped"), ("cough", "coughed"), ("ring", "rang the bell")])
    t.cast.update(sign=sign, past=past, n=NUMBERS[t.rng.randint(2, 6)], hour=NUMBERS[t.rng.randint(2, 12)], secret=t.rng.choice(SECRETS), btown=t.cast["B"].info.town.name,
                  dayname=t.rng.choice(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]))
    t.para()
    day(t, "{A} found a [letter in a bottle|note under a stone|piece of paper in an old shoe] near {P}")
    t.say('It said: "Come to {Q} on {dayname} at {hour} o\'clock. ^{sign} {n} times. Bring {T.a}. Tell nobody. {B.full}."')
    t.say("{A} knew nobody called {B.full}, but [read it again and again|learned every word by heart].")
    t.para()
    t.say('{A} had no {T.n} and asked {K} at {Kplace}. "[I have none|I sold the last one yesterday]," said {K.name}. "Ask {L.name} the {L.kind}." {L} was {Ldoing}. '
          '"[You may borrow mine|Here is one|Take this one]," said {L.name}, and gave {A} {T}.')
    smalltalk(t, "L")
    t.maybe(0.5, '"What do you need it for?" asked {L.name}. But the letter said to tell nobody, and so {A} [only smiled|kept silent].')
    t.para()
    t.say("On {dayname}, [when the clock struck {hour}|at {hour} o'clock], {A} stood at {Q}, where {Q.see}, and {past} {n} times.")
    t.say('[A {B.kind} stepped out|Out came a {B.kind}]. "I am {B} from {btown}," said the {B.kind}. "[Did you bring|Have you got] {T.a}?" {A} held up {T}. "Good. Then I will show '
          'you something." Behind a curtain of leaves was {secret}. "[I needed someone who can keep a secret|Only someone who reads carefully could find it]," said {B}.')
    t.say("[From then on they met every {dayname} at {hour} o'clock|Every {dayname} at {hour} they met at {Q}], and the sign was always the same: {A} {past} {n} times.")
    t.maybe(0.6, "{T} went back to {L} [the same evening|the next day].")
    end(t)


PLOTS = [lost_thing, remedy, trade_chain, rescue, directions, riddle, counting, promise, contest, night_light, inheritance, letter]
