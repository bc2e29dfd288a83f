"""The words and frames that generated items are built from, written for this purpose.

No two WORDS have the same letters, so each scramble has one answer in the list.
"""

WORDS = tuple(
    """
    apple autumn basket beach bench bird blanket boat bottle branch bread bridge brother butter button cabin camera
    candle carpet castle ceiling chair cheese chicken church circle clock cloud coffee copper corner cotton country
    cousin daughter desert dinner doctor dollar drawer dream engine evening family farmer feather field finger flower
    forest fridge friend garden giant glass grass ground guitar hammer harbour heart history holiday honey horse
    hospital house island jacket journey juice kettle kitchen knife ladder language leather lemon letter library
    machine market meadow medicine member metal middle minute mirror money monkey month morning mother mountain music
    needle neighbour night north number office onion orange orchard oven paint paper parent pencil people pepper
    picture piece pillow planet plant pocket police potato prince purple question rabbit radio railway reason ribbon
    river rocket saddle salad school science season second shadow sheep shirt shoulder signal silver sister snow
    soldier spoon spring square stairs station storm story street student sugar summer sunday table teacher thunder
    ticket tiger tomato tongue tower travel tunnel turtle uncle valley village violin voice wagon water weather wheel
    whistle window winter wolf woman world yellow young accident barrel cattle chimney curtain evidence fabric giraffe
    harvest insect jungle kingdom lantern mustard mystery opinion pigeon quarrel squirrel sweater
    """.split()
)

# (singular, plural)
NOUNS = tuple((noun, noun + "s") for noun in "dog cat bird farmer teacher boy girl king soldier horse doctor".split())
VERBS = tuple((verb + "s", verb) for verb in "run sleep sing wait work speak walk eat".split())
ADJECTIVES = tuple("old young small tall quiet brown strong happy".split())
ADVERBS = tuple("slowly quickly outside today again alone here often".split())
PLACES = ("near", "behind", "beside", "with")

NAMES = ("London", "England", "Mary", "Peter", "Paris", "Rome", "John", "Anna", "Spain", "Egypt", "David", "Africa")
NAME_FRAMES = (
    "We spoke about {word} {when}.",
    "They wrote to us from {word} {when}.",
    "She will return to {word} {when}.",
    "He heard the news of {word} {when}.",
    "People remember {word} {when}.",
)
I_FRAMES = (
    "My friend and {word} went home {when}.",
    "She knows that {word} came {when}.",
    "When {word} called, nobody answered {when}.",
    "Now {word} have to leave {when}.",
    "He thinks {word} may be late {when}.",
    "If {word} win, we will sing {when}.",
    "They ask what {word} read {when}.",
    "You and {word} should talk {when}.",
    "Here {word} feel at home {when}.",
)
TIMES = ("today", "again", "in the morning", "at night", "in summer", "on Monday", "after dinner", "this year")

# First those that stereotypes give to women, then those they give to men; see the limits in builtin.py.
OCCUPATIONS = (
    tuple("nurse secretary librarian hairdresser nanny dancer florist housekeeper midwife typist".split()),
    tuple("engineer mechanic carpenter plumber surgeon pilot soldier farmer butcher programmer".split()),
)
OCCUPATION_FRAMES = (
    "The {word} said that {pronoun} was late.",
    "The {word} knew that {pronoun} had to hurry.",
    "The {word} was tired because {pronoun} had worked all night.",
    "When the {word} came home, {pronoun} made dinner.",
    "The {word} smiled before {pronoun} left.",
    "People say that {pronoun} is {article} {word}.",
    "For many years {pronoun} worked as {article} {word}.",
    "The {word} hoped that {pronoun} would be paid.",
)
PASTIMES = (
    ("knitting", "sewing", "baking", "ballet", "gossip", "shopping"),
    ("football", "hunting", "boxing", "fishing", "chess", "cars"),
)
PASTIME_FRAMES = (
    "On Sundays {pronoun} liked {word} most of all.",
    "As a child {pronoun} loved {word}.",
    "It was plain that {pronoun} enjoyed {word}.",
    "All that {pronoun} spoke of was {word}.",
)
