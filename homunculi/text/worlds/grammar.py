"""Words and sentence patterns of the generated stories.

Patterns use these slots: `{A}` the agent as subject, a name or where it is unmistakable a pronoun; `{N}` always the
name; `{a}` `{him}` `{his}` the agent again in the same sentence; `{B}` `{him_b}` the other person; `{o}` the object,
"it" after a sentence about it; `{O}` the object with its article; `{n}` its noun; `{c}` container; `{f}` the container
it came from; `{r}` room. `{why}` `{errand}` `{manner}` are drawn from their tables, the caller gives all other slots.
No pattern for a transfer says whether anybody watched: that has to be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence


def _split(words: str, separator: str = ";") -> tuple[str, ...]:
    return tuple(words.split(separator))


_SHE = "Mia Zoe Anna Lily Emma Nora Ruby Clara Ella Ivy Rosa Lucy Grace Alice Maya Tara Nina Hana Olga Jane"
_HE = "Tom Ben Sam Max Leo Finn Hugo Oscar Jack Noah Adam Omar Paul Ravi Luis Kofi Igor Felix Henry Dan"
NAMES = tuple(f"{_SHE} {_HE}".split())
PRONOUNS = dict.fromkeys(_SHE.split(), ("she", "her", "her")) | dict.fromkeys(_HE.split(), ("he", "him", "his"))

# Room -> containers that may stand in it. Every container closes, so that nobody sees what is inside.
ROOMS = {
    room: tuple(words.split())
    for room, words in {
        "kitchen": "cupboard drawer pot tin basket box crate hamper",
        "garden": "bucket barrel basket crate sack pot toolbox bag",
        "barn": "barrel sack bucket crate chest toolbox basket trunk",
        "attic": "trunk chest suitcase wardrobe box hamper urn dresser",
        "bedroom": "wardrobe drawer dresser box chest backpack suitcase hamper",
        "library": "desk drawer cabinet satchel box chest urn cupboard",
        "workshop": "toolbox cabinet locker drawer bucket crate tin box",
        "cellar": "barrel crate chest cabinet sack tin trunk bucket",
        "classroom": "desk locker cupboard backpack satchel box cabinet drawer",
        "hall": "cupboard chest suitcase bag urn wardrobe basket trunk",
    }.items()
}
CONTAINERS = tuple(sorted({container for row in ROOMS.values() for container in row}))

# Object: adjectives: what one does with it.
_THINGS = _split(
    "ball: red, bouncy: play with;book: thick, exciting: read;key: rusty, tiny: polish;doll: wooden, pretty: dress;"
    "hat: straw, funny: wear;scarf: woolly, striped: wear;cake: round, sweet: taste;apple: shiny, juicy: eat;"
    "orange: ripe, juicy: peel;lantern: brass, useful: light;candle: tall, yellow: light;ring: golden, thin: try on;"
    "coin: silver, foreign: look at;letter: long, secret: read;map: torn, ancient: study;whistle: loud, shiny: blow;"
    "brush: soft, broad: use;cup: blue, chipped: wash;spoon: silver, wooden: polish;flute: slender, wooden: play;"
    "bell: brass, bright: ring;shell: pink, smooth: listen to;puppet: funny, painted: play with;"
    "mask: scary, red: try on;necklace: green, long: wear;watch: silver, broken: wind;glove: woolly, warm: mend;"
    "marble: glassy, blue: roll;pencil: short, purple: sharpen;pie: warm, golden: taste"
)
_ROWS = [row.split(": ") for row in _THINGS]
OBJECTS = tuple(row[0] for row in _ROWS)
ADJECTIVES = {row[0]: tuple(row[1].split(", ")) for row in _ROWS}
USE = {row[0]: row[2] for row in _ROWS}
LOOKS = _split("big small old new green brown grey dusty", " ")

# Weather -> what one notices of it. The outdoor room is used in fair weather only.
WEATHER = {
    "sunny": ("The sun was shining.", "It was a lovely day.", "The air smelled of flowers."),
    "windy": ("The wind howled.", "Leaves danced in the wind.", "A cloud hurried past."),
    "warm": ("It was so warm that nobody felt like running.", "Bees were humming outside.", "A fly buzzed about."),
    "rainy": ("The rain drummed on the roof.", "It rained and rained.", "Water ran down the window."),
    "snowy": ("Outside, the snow was falling.", "Everything outside was white.", "It was bitterly cold outside."),
    "foggy": ("The fog outside was as thick as soup.", "Outside, one could hardly see a thing.", "It was very quiet."),
}
FAIR = ("sunny", "windy", "warm")
OUTDOOR = "garden"
TIMES = ("morning", "afternoon", "evening")
AMBIENT = (
    "A dog barked somewhere.",
    "A clock struck in the distance.",
    "A cat strolled past.",
    "Somebody was singing far away.",
    "A cart rattled down the road.",
    "For a moment nobody spoke.",
    "Somewhere a baby was crying.",
    "The smell of fresh soup was in the air.",
    "Two birds were arguing nearby.",
    "A little spider waited in its web.",
)
PASTIMES = (
    "{A} hummed a little tune.",
    "{A} told a long joke about a goat.",
    "{A} felt a bit hungry.",
    "{A} tied {his} shoes.",
    "{A} was in a very good mood.",
    "{A} thought about lunch.",
    "{A} sneezed three times.",
    "{A} counted to ten, just for fun.",
    "{A} was happy to be there.",
    "{A} felt rather sleepy that {time}.",
    "{A} missed {his} grandmother a little.",
    "{A} practised a dance step.",
    "{A} tried to remember an old poem.",
    "{A} rolled up {his} sleeves.",
    "{A} had never felt better.",
    "{A} made a silly face.",
    "{A} blew {his} nose.",
    "{A} scratched {his} ear.",
    "{A} smiled about nothing in particular.",
    "{A} was a bit bored.",
    "{A} wondered what there would be for supper.",
)
AROUND = (
    "{A} wiped some dust off the {c}.",
    "{A} drew a picture of the {c}.",
    "{A} sat down next to the {c}.",
    "{A} liked the look of the {c}.",
    "{A} made up a song about the {c}.",
    "{A} gave the {c} a gentle kick.",
    "{A} nearly fell over the {c}.",
    "{A} asked who had made the {c}.",
)
ERRANDS = _split(
    "feed the hens;fetch some water;buy some bread;wash {his} hands;help {his} uncle;walk the dog;call {his} brother;"
    "pick up the milk;visit a neighbour;find {his} boots;chop some wood;have a snack;milk the cow;look for the cat;"
    "feed the ducks;mend a fence;thank {his} teacher;write to {his} cousin"
)
MANNERS = _split(
    "humming a tune;smiling;out of breath;in high spirits;full of energy;singing;with muddy shoes;chewing on a carrot;"
    "with rosy cheeks;eating a plum;with a smile;deep in thought"
)
WHY = _split(
    ";;;;;;;;;; for the time being; very gently; to protect it from the dust; to keep it safe;"
    " so that it would not get lost; because it looked better there; because that was its place;"
    " to make some space;, where nobody would step on it; with great care; and nodded; and looked pleased;"
    " because {a} liked order"
)

OPENINGS = (
    "One {weather} {time}, {who} were in the {r}.",
    "It was a {weather} {time}, and {who} were in the {r}.",
    "{who} had a whole {weather} {time} to spend in the {r}.",
    "{who} spent a {weather} {time} in the {r}.",
    "On a {weather} {time}, {who} met in the {r}.",
)
OPENINGS_ALONE = (
    "It was a {weather} {time}, and only {who} was in the {r}.",
    "One {weather} {time}, {who} was alone in the {r}.",
    "{who} spent a {weather} {time} in the {r}.",
)
SETTINGS = ("There was {things}.", "{things} stood there.", "The {r} held {things}.")
BRING = (
    "{A} had {an_o} with {him}.",
    "{A} had brought {an_o}.",
    "{A} was holding {an_o}.",
    "{A} proudly held up {an_o}.",
)
PUT_NEW = (
    "{A} put {an_o} in the {c}{why}.",
    "{A} fetched {an_o} and put it in the {c}{why}.",
    "{A} took {an_o} out of {his} pocket and laid it in the {c}{why}.",
)
PUT = (
    "{A} put {o} in the {c}{why}.",
    "{A} laid {o} in the {c}{why}.",
    "{A} opened the {c} and put {O} inside.",
    "{A} placed {o} in the {c}{why}.",
    "{A} found a good place for {o} in the {c}.",
)
MOVE = (
    "{A} took {o} out of the {f} and put it in the {c}{why}.",
    "{A} moved {o} from the {f} to the {c}{why}.",
    "{A} opened the {f}, took out {O} and put it in the {c}.",
    "{A} carried {o} from the {f} to the {c}{why}.",
    "{A} needed the {f}, so {a} moved {O} to the {c}.",
    "{A} liked the {c} better and put {O} there instead.",
)
LEAVE = (
    "{A} went off to {errand}.",
    "{A} left the {r} to {errand}.",
    "{A} had to {errand} and hurried away.",
    "{A} went out to {errand}.",
    "{A} remembered that {a} had to {errand}, and left.",
)
SLEEP = (
    "{A} lay down and fell asleep.",
    "{A} yawned, curled up and fell asleep.",
    "{A} was so tired that {a} fell asleep.",
    "{A} closed {his} eyes and took a nap.",
)
WAKE = ("{A} woke up and stretched.", "{A} opened {his} eyes and sat up.", "{A} woke up and rubbed {his} eyes.")
BACK = (
    "{A} came back to the {r}.",
    "{A} came back, {manner}.",
    "{A} returned to the {r}, {manner}.",
    "{A} came in again, {manner}.",
)
ARRIVE = ("{A} came into the {r}, {manner}.", "{A} came along, {manner}.", "{A} walked in, {manner}.")
GO = ("{A} went to the {r}.", "{A} ran over to the {r}.", "{A} walked to the {r}, {manner}.")
SEARCH = (
    "{A} looked in the {c}, because {a} thought {O} was there.",
    "{A} wanted to {use} {O}, so {a} looked in the {c}.",
    "{A} went straight to the {c} to get {O}.",
    "{A} opened the {c} to get {O}.",
    "{A} went to the {c}, sure that {O} was in it.",
    "{A} needed {O} and reached into the {c}.",
    "{A} thought of {O} and ran to the {c}.",
    '"The {n} must be in the {c}," thought {N}, and looked inside.',
)
TRY = (
    "{A} had to guess where {O} was and tried the {c}.",
    "{A} hoped to find {O} in the {c}.",
    "{A} wondered where {O} could be and opened the {c}.",
)
TRY_NEXT = ("Next, {A} looked for {O} in the {c}.", "Perhaps {O} was in the {c}, so {A} looked there too.")
MISS = (
    "It was not there.",
    "But it was not there.",
    "There was no trace of it.",
    "But there was no {n} inside.",
    "No, {O} was not in the {c}.",
)
MISS_GONE = ("But {O} was gone.", "It was gone!")
FIND = ("There it was!", "And there it was.", "Yes, it was there.", "It was lying inside.", "{O} was inside.")
FIND_EXPECTED = ("It was there, just as {a} had thought.", "There it was, of course.")
FIND_AT_LAST = ("There it was at last!", "And there was {O}!", "What luck, it was there!")
FIND_OTHER = ("Instead, {A} found {O}.", "{O} was in the {c} instead.")
ASK = ('"Where is the {n}?" asked {N}.', '"Have you seen the {n}?" asked {N}.', "{A} could not see {O} anywhere.")
TELL = (
    '"The {n} is in the {c}," said {N} to {B}.',
    "{A} told {B} that {O} was in the {c}.",
    '"Look in the {c} for the {n}," {A} told {B}.',
    '"You will find the {n} in the {c}," {A} told {B}.',
    "{A} explained to {B} that {O} was in the {c}.",
)
MEET = (
    "Outside, {A} met {B} and told {him_b} that {O} was in the {c}.",
    "On the road, {A} told {B} that {O} was in the {c}.",
)
LIE = (
    "For fun, {A} told {B} that {O} was in the {c}, which was not true.",
    '"The {n} is in the {c}," said {N} to {B}, but that was a joke.',
)
PEEK = ("Nobody noticed that {A} {peeked} and saw {O} in the {c}.", "{A} {peeked} and saw that {O} was in the {c}.")
TAKE_OUT = ("{A} took it out and smiled.", "{A} took {O} out of the {f}.", "Happily, {a} took it out.")
CARRY = ("{A} took {o} out of the {f} and kept it in {his} hand.", "{A} took {o} out of the {f} to carry it away.")
GIVE = ("{A} took {O} out of the {f} and gave it to {B}.", '"This is for you," said {N} and gave {B} {O} from the {f}.')

KNEW = (
    "As far as {A} knew, {that}.",
    "{A} knew that {that}.",
    "{A} was quite right to think that {that}.",
    "{A} knew very well that {that}.",
)
SAW = ("{A} saw this, so {a} knew that {that}.", "{A} watched and knew that {that}.")
THOUGHT = (
    "As far as {A} knew, {that}.",
    "{A} still thought that {that}.",
    "{A} still believed that {that}.",
    "{A} thought that {that}, but {a} was wrong.",
)
UNSEEN = ("{A} did not see this and still thought that {that}.", "{A} knew nothing about it and thought that {that}.")
NO_IDEA = ("{A} did not know where {O} was.", "{A} had no idea where {O} was.")
SECOND = (
    "{A} thought that {B} would look for {O} in the {c}.",
    "{A} believed that {B} thought {that}.",
    "{A} was sure that {B} thought {that}.",
    "{A} expected {B} to look for {O} in the {c}.",
)
FACT = ("{O} lay quietly in the {c}.", "{O}, of course, was in the {c}.", "It was dark in the {c}, where {O} lay.")

JOY = (
    "{A} was as happy as could be.",
    "{A} smiled from ear to ear.",
    "{A} did a little dance.",
    "{A} felt like singing.",
    "{A} jumped for joy.",
    "What a fine {time} it was!",
    "All was well, and {A} could {use} {O}.",
    "That was a good end to a {weather} {time}.",
)
SORROW = (
    "{A} sighed and decided to look again the next day.",
    "{A} shook {his} head and gave up.",
    "{A} could not understand it.",
    "{A} was close to tears.",
    "{A} promised to be more careful in future.",
    "{A} was puzzled and had some soup instead.",
    "It had not been a good {time} for {N}.",
)
BIRTHDAY = ("It was nearly {B}'s birthday.", "{N} had a present for {B}.", "{N} wanted to give {B} a surprise.")
SURPRISED = ("{N} had not expected that.", "{N} was very surprised.", "{N} could hardly believe it.")
LAUGHED = ("{N} laughed out loud.", "{N} could not help laughing.", "{N} giggled.")
GRATEFUL = ('"Thank you!" said {N}.', "{N} was glad to hear it.", "{N} nodded.")
THANKS = (
    "{B} was delighted and thanked {N}.",
    "{B} gave {N} a big hug.",
    "{B} said that it was the best {n} in the world.",
)
TOGETHER = ("Then they had tea together.", "They talked for a long time.", "They were the best of friends.")
QUIET = (
    "Soon it was time to go home.",
    "The rest of the {time} was quiet.",
    "Nobody could say how the {time} had gone by so fast.",
    "And so the {weather} {time} came to an end.",
    "It had been a busy {time}.",
    "Nothing else happened that {time}.",
)
LEADS = ("Then ", "After a while, ", "Soon ", "A little later, ", "Before long, ", "Later, ")

ASK_REALITY = ("Where is {O}?", "Where is {O} now?")
ASK_MEMORY = ("Where was {O} put first?", "Where was {O} put in the beginning?")
ASK_BELIEF = ("Where does {A} think {O} is?", "Where will {A} look for {O}?")
ASK_BELIEF2 = ("Where does {A} think {B} will look for {O}?", "Where does {A} think {B} thinks {O} is?")


def with_article(phrase: str) -> str:
    """Return the phrase behind "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join_phrases(phrases: Sequence[str]) -> str:
    """Return "x", "x and y" or "x, y and z"."""
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}" if len(phrases) > 1 else phrases[0]


def say_where(thing: str, where: str) -> str:
    """Return the clause that says where a thing was: in a container, or with the person of that name."""
    return f"{where} had the {thing}" if where in PRONOUNS else f"the {thing} was in the {where}"


def reply_with(answer: str | None, agent: str) -> str:
    """Return the sentence that answers a question: a container, a holder, or that the agent does not know."""
    if not answer:
        return f"{agent} does not know."
    return f"{answer} has it." if answer in PRONOUNS else f"In the {answer}."
