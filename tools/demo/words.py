"""The vocabulary of the story generator: who lives in its world, what they own, and what they know.

Every table carries facts that hold in every story (what an animal can do, what a trade sells, which tool solves which
trouble), so that a language model can learn them.
"""

GIRLS = """Ada Alma Amy Anna Bella Bess Cara Clara Daisy Dora Edith Ella Elsie Emma Esme Eva Flora Freya Gemma Grace
Greta Hanna Hazel Heidi Ida Ines Iris Isla Ivy Jane Jenny Josie Julia June Kate Kira Lena Lila Lily Lotte Lucy Luna Mabel
Mara Maya Mia Mila Mina Molly Nadia Nell Nina Nora Olive Pearl Petra Polly Rosa Rose Ruby Ruth Sally Sara Sofia Stella
Sylvie Tess Tilda Uma Vera Violet Wanda Willa Yara Zoe""".split()

BOYS = """Abel Adam Alan Albie Anton Arlo Ben Bram Bruno Carl Casper Colin Dan Dario Davy Eli Elmer Emil Erik Ezra Felix
Finn Frank Fred Gabe George Gus Hans Harry Henry Hugo Ian Ivan Jack Jakob Jasper Joe Jonas Karl Kit Lars Leo Levi Louis
Luca Luke Marco Mark Martin Max Milo Moses Ned Niko Noah Oliver Omar Oscar Otto Owen Paul Peter Piet Rafi Ralph Remy
Robin Rory Sam Simon Stefan Theo Tim Toby Tom Victor Walter Will""".split()

PET_NAMES = """Acorn Bandit Barley Basil Biscuit Bramble Brownie Bubbles Button Clover Coco Copper Cricket Dandy Dusty
Fern Fidget Flicker Ginger Hickory Juniper Maple Midge Mistle Mocha Moss Nettle Nutmeg Oats Patch Pebble Pepper Pickle
Pip Plum Poppy Quill Ripple Rusty Sable Saffron Scout Smoky Sorrel Sparky Speckle Tansy Thistle Thimble Tumble Twig
Velvet Waffle Whisker Willow Winnie""".split()

SURNAMES = """Alder Ash Barrow Beck Birch Bright Brook Cobb Cooper Crane Dale Dove Elm Fern Field Finch Fisher Ford Frost
Gale Green Grove Hart Heath Hill Holly Hood Kettle Lake Lark Marsh Meadow Mill Moor North Oak Page Penny Pike Pond Reed
Rook Rowan Sparrow Stone Swan Thorn Wells Winter Wood Wren""".split()

TRAITS = """brave careful cheerful clever curious dreamy eager friendly gentle hasty honest kind lively merry modest
patient polite proud quiet quick shy silly stubborn thoughtful tidy""".split()

# What a trait means when it shows.
TRAIT_SHOWS = {
    "brave": "was afraid of almost nothing", "careful": "always looked twice before taking a step",
    "cheerful": "sang from morning till night", "clever": "could solve any puzzle",
    "curious": "asked questions all day long", "dreamy": "liked to watch the clouds for hours",
    "eager": "was always the first one out of bed", "friendly": "said good morning to everyone, even to the trees",
    "gentle": "would not hurt a fly", "hasty": "did everything much too fast", "honest": "had never told a lie",
    "kind": "could not bear to see anyone sad", "lively": "could never sit still", "merry": "laughed at every joke twice",
    "modest": "never boasted about anything", "patient": "could wait for a whole day without a word of complaint",
    "polite": "never forgot to say please and thank you", "proud": "did not like to ask for help",
    "quiet": "listened more than most people talk", "quick": "could run faster than the wind",
    "shy": "hid behind the door when guests came", "silly": "wore odd socks on purpose",
    "stubborn": "never gave up", "thoughtful": "remembered every birthday in the village",
    "tidy": "put everything back in its place",
}

PROVERBS = """slow feet find more than fast ones
a shared loaf is never small
small keys open big doors
look down before you look far
a friend is a light in the fog
no knot is tied for ever
the longest road begins at your own door
ask first and dig later
every storm runs out of rain
even a mouse can wake a lion
a kind word weighs nothing and carries far
what is lost in haste is found in patience
two oars are better than one
the night is never so dark as it looks from the window
listen twice and speak once
a promise is a bridge you build with words
mend the roof while the sun shines
the river is wide only for those who do not ask the ferryman
a warm heart needs no coat
honest hands are never empty
who helps the crow will never lose the way
it is better to try and fall than to stand and wonder
big troubles have small beginnings
the last apple is the sweetest
there is always one more door to knock on""".split("\n")

TUNES = ["The Miller's Cat", "Seven Little Boats", "Snow on the Mountain", "The Fox and the Moon", "Over the Green Hill",
         "The Sailor's Button", "Apples in the Morning", "The Sleepy Drum", "Three Grey Geese", "The Road to the Sea", "A Hat Full of Rain", "The Baker's Daughter",
         "Twelve White Horses", "My Little Lantern", "The Owl's Wedding", "Down by the Mill", "The King's Old Boots", "Five Brave Mice",
         "Good Night, River", "The Crooked Fiddle"]

# Places: name, "in/at/on", what is seen there (two of them).
PLACES = [
    ("the old mill", "at", "the big wheel turned slowly", "flour dust hung in the air"),
    ("the market square", "in", "the stalls were full of fruit", "everyone was talking at once"),
    ("the harbor", "at", "the boats rocked on the waves", "gulls sat on every post"),
    ("the stone bridge", "on", "the water ran fast below", "moss grew between the stones"),
    ("the dark forest", "in", "the trees stood close together", "the ground was soft with needles"),
    ("the green meadow", "in", "the grass reached up to the knee", "bees hummed among the flowers"),
    ("the apple orchard", "in", "red apples hung from every branch", "ladders leaned against the trees"),
    ("the church tower", "at", "pigeons cooed under the roof", "the great bell hung silent"),
    ("the windy hill", "on", "the grass bent in the wind", "the whole valley lay below"),
    ("the river bank", "on", "reeds whispered in the wind", "small fish jumped out of the water"),
    ("the empty barn", "in", "the hay smelled sweet", "sunlight fell through the cracks"),
    ("the village school", "at", "chalk dust covered the floor", "the benches stood in rows"),
    ("the frog pond", "at", "lilies floated on the water", "dragonflies flew in circles"),
    ("the crooked oak", "at", "its branches touched the ground", "a swing hung from the lowest branch"),
    ("the sandy beach", "on", "shells lay in long lines", "the waves came and went"),
    ("the rose garden", "in", "the roses smelled like honey", "a little fountain splashed"),
    ("the lighthouse", "at", "the lamp shone far over the sea", "a long stair wound up to the top"),
    ("the stone quarry", "in", "every step gave an echo", "grey dust covered the carts"),
    ("the corn field", "in", "the corn stood taller than a man", "a scarecrow waved its arms"),
    ("the town library", "in", "books reached up to the ceiling", "a clock ticked softly"),
    ("the railway station", "at", "the rails shone in the light", "an old porter slept on a bench"),
    ("the foggy marsh", "in", "the ground gave way at every step", "herons stood on one leg"),
    ("the castle ruin", "at", "ivy climbed over the broken walls", "lizards slept on the warm stones"),
    ("the hidden cave", "in", "water dripped from the roof", "it smelled of wet earth"),
]

# Trades: noun, gender choices, place of work, what it sells or lends, the tool, what they are always doing.
TRADES = [
    ("baker", "the bakery", "a loaf of warm bread", "a long wooden shovel", "kneading dough"),
    ("smith", "the forge", "an iron hook", "a heavy hammer", "hitting a glowing iron bar"),
    ("miller", "the old mill", "a sack of flour", "a sieve", "filling sacks"),
    ("fisher", "the harbor", "a basket of herrings", "a wide net", "mending a net"),
    ("beekeeper", "the bee garden", "a jar of honey", "a smoke pot", "talking to the bees"),
    ("shepherd", "the high pasture", "a ball of wool", "a crooked staff", "counting sheep"),
    ("gardener", "the rose garden", "a bunch of mint", "a sharp spade", "digging a flower bed"),
    ("tailor", "the tailor's shop", "a blue ribbon", "a pair of scissors", "sewing a coat"),
    ("carpenter", "the carpenter's yard", "a plank of oak", "a tall ladder", "sawing boards"),
    ("potter", "the potter's house", "a clay jug", "a potter's wheel", "shaping a bowl"),
    ("weaver", "the weaver's cottage", "a woolen blanket", "a loom", "throwing the shuttle"),
    ("ferryman", "the river crossing", "a coil of rope", "a long pole", "tying up the boat"),
    ("librarian", "the town library", "a book of maps", "a reading glass", "sorting books"),
    ("doctor", "the doctor's house", "a bottle of syrup", "a black bag", "washing bottles"),
    ("painter", "the painter's attic", "a pot of yellow paint", "a thin brush", "mixing colors"),
    ("clockmaker", "the clock shop", "a brass spring", "a tiny screwdriver", "winding clocks"),
    ("shoemaker", "the shoe shop", "a pair of laces", "a round knife", "hammering a heel"),
    ("farmer", "the farm", "a dozen eggs", "a hay fork", "feeding the cows"),
    ("woodcutter", "the edge of the forest", "a bundle of firewood", "a bright axe", "splitting logs"),
    ("innkeeper", "the inn", "a bowl of soup", "a bunch of keys", "sweeping the steps"),
    ("glassblower", "the glass works", "a green bottle", "a long pipe", "blowing a glass ball"),
    ("candle maker", "the candle shop", "a tall white candle", "a pot of wax", "dipping wicks"),
    ("cheesemaker", "the dairy", "a round of cheese", "a copper kettle", "stirring milk"),
    ("fruit seller", "the market square", "a bag of lemons", "a brass scale", "stacking pears"),
]

# Things that are loved, lost and found: noun, what it is for, the sound or look that gives it away, what kind of gift.
THINGS = [
    ("kite", "to fly on the hill", "its long tail fluttered"), ("drum", "to play at the fair", "it gave a deep boom"),
    ("lantern", "to light the way at night", "its glass caught the light"),
    ("whistle", "to call the dogs", "it gave a clear note"),
    ("music box", "to hear a tune before bed", "it played a soft tune"),
    ("compass", "to find the north", "its needle trembled"), ("top", "to spin on the kitchen floor", "it hummed"),
    ("toy boat", "to sail on the pond", "its little sail shone"), ("scarf", "to wear in the wind", "its fringe waved"),
    ("hat", "to keep off the sun", "its feather stood up straight"), ("umbrella", "to keep dry", "its handle gleamed"),
    ("basket", "to carry to the market", "its handle creaked"), ("key", "to open the garden gate", "it clinked"),
    ("bell", "to hang around the goat's neck", "it rang"), ("book", "to read under the covers", "its pages rustled"),
    ("ring", "to wear on feast days", "it sparkled"), ("doll", "to sleep with at night", "its button eyes shone"),
    ("ball", "to throw against the barn", "it bounced"), ("flute", "to play for the sheep", "it gave a sweet note"),
    ("mirror", "to flash signals across the valley", "it flashed"), ("map", "to find the treasure", "it crackled"),
    ("cup", "to drink cocoa from", "its rim shone"), ("watch", "to know when supper is ready", "it ticked"),
    ("locket", "to keep a tiny picture in", "its chain glittered"), ("sled", "to ride down the hill", "its runners shone"),
    ("spoon", "to stir the jam with", "it clattered"), ("marble", "to roll down the lane", "it clicked"),
    ("medal", "to wear on parade", "it jingled"), ("fan", "to cool the face in summer", "it snapped open"),
    ("spyglass", "to look at ships", "its brass tube gleamed"),
]

ADJECTIVES = """red blue green yellow white black silver golden brown purple orange grey striped painted carved polished
wooden tiny old new round shiny crooked heavy little""".split()

FOODS = ["a piece of bread", "an apple", "a slice of cheese", "a handful of nuts", "a honey cake", "a ripe pear",
         "a boiled egg", "a carrot", "a bun with raisins", "a bag of cherries", "a ginger biscuit", "a cold potato"]

# Animals: kind, the sound it makes, its home, what it can do (a key of TROUBLES).
ANIMALS = [
    ("crow", "cawed", "a nest in the elm", "high"), ("squirrel", "chattered", "a hole in the oak", "high"),
    ("cat", "purred", "a basket by the stove", "high"), ("monkey", "chirped", "the sailor's cabin", "high"),
    ("otter", "squeaked", "a den by the river", "water"), ("duck", "quacked", "a nest in the reeds", "water"),
    ("beaver", "slapped its tail", "a lodge of branches", "water"), ("frog", "croaked", "a lily leaf", "water"),
    ("mouse", "squeaked", "a hole behind the cupboard", "narrow"), ("weasel", "chirped", "a crack in the wall", "narrow"),
    ("lizard", "hissed softly", "a gap between two stones", "narrow"),
    ("mole", "snuffled", "a tunnel under the lawn", "buried"), ("badger", "grunted", "a den under the roots", "buried"),
    ("rabbit", "thumped its foot", "a burrow in the meadow", "buried"),
    ("pony", "neighed", "a warm stable", "heavy"), ("donkey", "brayed", "a shed behind the inn", "heavy"),
    ("ox", "lowed", "the farmer's barn", "heavy"), ("bear", "growled softly", "a cave on the hill", "heavy"),
    ("owl", "hooted", "the church tower", "dark"), ("bat", "squeaked", "the roof of the barn", "dark"),
    ("hedgehog", "sniffed", "a heap of leaves", "dark"),
    ("dog", "barked", "a kennel in the yard", "scent"), ("fox", "yapped", "a den in the forest", "scent"),
    ("pig", "grunted", "a sty beside the farm", "scent"),
]

# Troubles: key -> (what happened to the thing, a failed attempt, how an animal solves it, the tool, how the tool solves it)
TROUBLES = {
    "high": [("hung from the highest branch of a tall tree", "climbed as far as the third branch, but it cracked",
              "ran up the trunk and pushed {O} down", "a ladder", "leaned the ladder against the tree and climbed up"),
             ("was stuck on the roof of a house", "jumped and jumped, but the roof was much too high",
              "was up on the roof in a moment and rolled {O} over the edge", "a ladder",
              "set the ladder against the wall and went up step by step")],
    "water": [("had fallen into the river and was drifting away", "ran along the bank, but the water was faster",
               "dived in without a splash and brought {O} to the bank", "a net", "threw the net wide and pulled it in"),
              ("lay at the bottom of a deep pond", "reached down with a stick, but the stick was too short",
               "slipped under the water and came up with {O}", "a net", "let the net sink and drew it in slowly")],
    "narrow": [("had slipped into a crack between two rocks", "put a hand into the crack, but it was too narrow",
                "slid into the crack and pulled {O} out", "a hook", "tied the hook to a string and fished in the crack"),
               ("had rolled into a narrow pipe", "shook the pipe with both hands, but nothing came out",
                "crawled into the pipe and pushed {O} out at the other end", "a hook",
                "bent the hook and drew it slowly through the pipe")],
    "buried": [("was buried under a heap of earth", "scratched at the earth until every finger hurt",
                "dug so fast that the earth flew, and soon {O} came to light", "a spade",
                "put the spade into the ground and dug a deep hole"),
               ("lay under the sand that the storm had blown in", "dug with both hands, but the sand slid back",
                "made a tunnel under the sand and came back with {O}", "a spade", "threw the sand aside with the spade")],
    "heavy": [("was trapped under a fallen tree", "pushed the tree with all {A.his} strength, but it did not move",
               "pulled the tree aside, and there was {O}", "a rope", "tied the rope around the tree and pulled it over"),
              ("lay beneath a cart that had tipped over", "tried to lift the cart, but it was far too heavy",
               "leaned against the cart until it rolled away from {O}", "a rope",
               "put the rope around the wheel and pulled the cart upright")],
    "dark": [("was somewhere in a cave as dark as night", "felt along the wall in the dark and soon turned back",
              "saw everything in the dark and came back with {O}", "a lamp", "lit the lamp and walked into the cave"),
             ("lay deep in a cellar without a window", "went down three steps and could not see a thing",
              "found the way through the dark and carried {O} up the steps", "a lamp",
              "lit the lamp and went down the steps")],
    "scent": [("had been carried off by the wind, nobody knew where", "looked behind every bush and found nothing",
               "put a nose to the ground and followed the scent straight to {O}", "a spyglass",
               "looked through the spyglass until something shone far away"),
              ("had been dropped somewhere in the tall grass", "walked up and down the field in vain",
               "sniffed to the left and to the right and stopped right in front of {O}", "a spyglass",
               "climbed a wall and searched the field with the spyglass")],
}

# Illnesses and three-part remedies: the ingredients' sources are places and trades above.
INGREDIENTS = [("honey", "beekeeper"), ("mint", "gardener"), ("lemons", "fruit seller"), ("milk", "cheesemaker"),
               ("eggs", "farmer"), ("pine bark", "woodcutter"), ("hot soup", "innkeeper"), ("white wax", "candle maker"),
               ("flour", "miller"), ("syrup", "doctor"), ("warm wool", "shepherd"), ("fish oil", "fisher")]

RIDDLES = [
    ("What has teeth but cannot bite?", "a comb"), ("What has hands but cannot clap?", "a clock"),
    ("What has a neck but no head?", "a bottle"), ("What runs all day but never gets tired?", "a river"),
    ("What gets wetter the more it dries?", "a towel"), ("What has one eye but cannot see?", "a needle"),
    ("What goes up when the rain comes down?", "an umbrella"), ("What has leaves but is not a tree?", "a book"),
    ("What follows you all day and leaves you at night?", "a shadow"), ("What has keys but opens no door?", "a piano"),
    ("What grows shorter while it stands and shines?", "a candle"), ("What has a bed but never sleeps?", "a river"),
    ("What can you break without touching it?", "a promise"), ("What has legs but cannot walk?", "a table"),
    ("What is full of holes and still holds water?", "a sponge"), ("What has ears but cannot hear?", "a corn field"),
    ("What travels the world and stays in a corner?", "a stamp"), ("What answers you but was never asked?", "an echo"),
    ("What has a tongue but never speaks?", "a shoe"), ("What is yours, but others use it more than you do?", "your name"),
]

NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
           "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]

BAKED = [("bun", "buns"), ("biscuit", "biscuits"), ("pie", "pies"), ("muffin", "muffins"), ("pancake", "pancakes"),
         ("honey cake", "honey cakes"), ("tart", "tarts"), ("roll", "rolls"), ("apple", "apples"), ("pear", "pears"),
         ("candle", "candles"), ("egg", "eggs"), ("ribbon", "ribbons"), ("walnut", "walnuts")]

# Weather: key -> how the day begins, how it goes on, how it ends.
WEATHER = {
    "sun": (["the sun shone from a clear sky", "it was warm and sunny", "not a cloud was in the sky", "the sun stood bright over the roofs"],
            ["the sun was high now", "the sun burned hot", "the stones were hot from the sun"],
            ["the sun was setting behind the hills", "the last sunlight lay on the roofs", "the warm air smelled of hay"]),
    "rain": (["it rained without a break", "rain drummed on the roofs", "the rain made long puddles in the road", "it was wet and grey"],
             ["the rain fell harder", "the puddles grew wider", "water ran down from every roof"],
             ["the rain had stopped", "a rainbow stood over the valley", "only a few drops fell from the trees"]),
    "wind": (["a strong wind blew from the sea", "the wind rattled the windows", "it was wild and windy", "the wind chased leaves along the road"],
             ["the wind howled louder", "leaves flew through the air", "the wind pulled at every coat"],
             ["the wind had died down", "the air was still at last", "the leaves lay quietly on the ground"]),
    "fog": (["fog lay thick over the fields", "the houses looked like ghosts in the fog", "it was foggy and still", "nobody could see farther than three steps in the fog"],
            ["the fog grew thicker", "not even the church tower could be seen in the fog", "every sound seemed far away in the fog"],
            ["the fog had lifted", "the fog was gone and the stars came out", "a breeze had blown the fog away"]),
    "snow": (["snow fell in big soft flakes", "the whole village was white with snow", "it was cold and snowy", "snow lay on every branch"],
             ["the snow lay deeper and deeper", "the snow creaked under every step", "more and more snow fell"],
             ["the snow had stopped falling", "the snow shone in the moonlight", "smoke rose from every snowy roof"]),
}

# What people say about it.
REMARKS = {
    "sun": ["such a fine day, {A}", "drink something, {A}, it is hot today", "the sun makes everyone lazy"],
    "rain": ["you are wet to the bone, {A}", "come in out of the rain, {A}", "nobody else is out in this rain"],
    "wind": ["hold on to your hat, {A}", "close the door, {A}, the wind blows everything away", "the wind blew you in, {A}"],
    "fog": ["I hardly saw you coming, {A}", "take care on the way, {A}, the fog is thick", "I knew you by your steps in this fog"],
    "snow": ["shake the snow from your shoes, {A}", "warm your hands, {A}, it is cold outside", "the snow will lie until spring"],
}

BAKED_IN_OVEN = {"bun", "biscuit", "pie", "muffin", "honey cake", "tart", "roll"}

# Favours that a seller asks, and how they are done.
CHORES = [("sweep the floor", "swept the floor until it shone"), ("carry in the wood", "carried in the wood, log by log"),
          ("feed the cat", "fed the cat, which purred"), ("hold the ladder", "held the ladder with both hands"),
          ("sing me a song", "sang until the windows shook"), ("count my coins", "counted the coins twice"),
          ("wash the pots", "washed the pots, big and small"), ("find my glasses", "found the glasses under a chair")]

# A creature in danger: what happened to it, how the first attempt fails, what is fetched, how it works.
DANGERS = [
    ("had fallen into a deep well", "reached down with a stick, but the stick was too short", "a rope", "let the rope down and pulled"),
    ("was stuck in the mud", "pulled with both hands and only sank in too", "a board", "laid the board over the mud and crawled out on it"),
    ("was sitting on a rock in the flood", "built a raft of branches, but the raft fell apart", "a bathtub", "rowed the bathtub across the water"),
    ("was sitting on thin ice", "set one foot on the ice and heard it crack", "a ladder", "lay flat on the ladder and reached out"),
    ("was hanging in the thorns by one leg", "tried a knife, but the knife was too blunt", "a pair of scissors", "cut one thorn after another"),
    ("was locked in a shed", "tried a hairpin, but the hairpin broke", "a key", "turned the key twice"),
    ("was caught in a pit", "held out a branch, but the branch snapped", "a ladder", "pushed the ladder down and climbed in"),
    ("was trapped behind a fire", "threw a cup of water, but that was not enough", "two buckets", "emptied one bucket after the other")]

# A promise: the request, the question about it, what is found when it was forgotten, how it is made good.
DUTIES = [
    ("feed my hens", "feed my hens", "the hens were gone and the gate stood open", "called the hens with a bowl of corn until every one was back"),
    ("water my roses", "water my roses", "the roses hung their heads", "carried twenty cans of water until the roses stood up again"),
    ("keep the fire burning", "keep the fire burning", "the fire was out and the house was cold", "split dry wood, blew on the ashes and made a new fire"),
    ("look after my cat", "look after my cat", "the cat sat on the roof and cried", "brought a ladder and lured the cat down with a piece of fish"),
    ("close the windows", "close the windows", "the floor was wet from wall to wall", "wiped the floor, board by board, until it was dry"),
    ("wind the big clock", "wind the big clock", "the clock had stopped at noon", "asked the time in the village and wound the clock again"),
    ("bring in the washing", "bring in the washing", "the washing lay all over the garden", "washed every shirt again and hung it by the stove"),
    ("milk the goat", "milk the goat", "the goat was bleating and kicking the door", "milked the goat and gave it the best hay"),
    ("stir the jam", "stir the jam", "the jam was burned and the pot was black", "picked new berries and cooked a new pot of jam"),
    ("guard the pie", "guard the pie", "the pie was gone, and only crumbs were left", "baked a new pie with apples from the orchard")]

# What is built in a contest, and its three parts.
BUILDS = [("raft", ["barrels", "ropes", "a sail"]), ("cart", ["wheels", "boards", "a whip"]), ("kite", ["paper", "sticks", "a tail"]),
          ("lantern", ["glass", "wire", "a candle"]), ("airship", ["feathers", "springs", "a propeller"]), ("snowman", ["snow", "coal", "a carrot"]),
          ("robot", ["tin cans", "screws", "a lamp"]), ("castle", ["sand", "shells", "a flag"]), ("puppet", ["wood", "strings", "a wig"]),
          ("cake", ["flour", "cherries", "a sugar rose"]), ("scarecrow", ["straw", "buttons", "a hat"]), ("organ", ["pipes", "bellows", "a crank"])]

LANDMARKS = ["the broken gate", "the red barn", "the well", "the big rock", "the signpost", "the two birches", "the wooden cross",
             "the duck pond", "the empty house", "the stone lion", "the hollow tree", "the narrow bridge", "the chapel", "the windmill",
             "the fallen log", "the blue door", "the haystack", "the old cannon", "the iron lamp", "the last fence"]

SHIPS = ["Swallow", "Morning Star", "Blue Whale", "Old Anna", "Sea Horse", "Golden Goose", "North Wind", "Mermaid", "Red Rooster", "Happy Return"]

SECRETS = ["a nest with five little birds", "a spring of clear water", "an old treasure chest", "a litter of kittens", "a hole full of glowworms",
           "a door in the rock", "a garden of strawberries", "a tiny house of twigs"]

TOWN_ENDS = ["ton", "ford", "field", "ham", "bridge", "mouth", "hurst", "dale"]

RIVERS = ["Avon", "Blythe", "Culm", "Dart", "Esk", "Fleet", "Glen", "Humber", "Isle", "Kenn", "Lark", "Meon", "Nene", "Otter", "Piddle",
          "Rye", "Severn", "Teme", "Ure", "Wye"]

FAMOUS = ["its cheese", "its bells", "its red roofs", "its horse fair", "its crooked tower", "its plum cakes", "its glass", "its storks",
          "its choir", "its long bridge", "its wool", "its fog", "its roses", "its brass band", "its pancakes", "its kites", "its old clock",
          "its ducks", "its cider", "its stairs"]

FEARS = ["thunder", "spiders", "geese", "the dark", "deep water", "high ladders", "the cellar", "owls", "big dogs", "masks", "bees", "loud drums",
         "empty houses", "the dentist", "snakes", "fire", "narrow stairs", "crowds", "ghosts", "rats"]

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
