"""Makes the sample rows and the tiny tokenizer that ship with smollit: `python benchmarks/make_samples.py [OUT]`.

Everything is composed from the hand-written banks below with a fixed seed, so a second run gives the same bytes.
OUT gets `data/samples/` and `models/tiny/`; without it, the ones inside the package are rebuilt.

A bank is a block: `# name`, then `?` question phrasings, `!` answer phrasings, then facts, `;` between them and `|`
between their fields. A line that starts with `-` is one fact by itself. `{0}` is a field, `{0.cap}` the same capitalised.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SEED = 20240
NUM_TRAIN, NUM_TEST = 360, 60
VOCAB_SIZE = 2048
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PACKAGE = Path(__file__).resolve().parents[1] / "smollit"

BANKS = """
# opposites
? What is the opposite of "{0}"?
? Give me the opposite of "{0}", please.
? Which word means the opposite of "{0}"?
! The opposite of "{0}" is "{1}".
hot|cold; big|small; tall|short; fast|slow; early|late; open|closed; full|empty; wet|dry; light|dark; loud|quiet; rich|poor; hard|soft
old|new; happy|sad; clean|dirty; strong|weak; wide|narrow; deep|shallow; heavy|light; near|far; true|false; sharp|blunt; up|down
inside|outside; always|never; begin|end; buy|sell; win|lose; push|pull; give|take; day|night; first|last; cheap|expensive; sweet|sour

# plurals
? What is the plural of "{0}"?
? How do I write more than one "{0}"?
? What is the plural form of the word "{0}"?
! The plural of "{0}" is "{1}".
child|children; mouse|mice; goose|geese; tooth|teeth; foot|feet; leaf|leaves; knife|knives; wolf|wolves; baby|babies; city|cities
box|boxes; bus|buses; church|churches; tomato|tomatoes; potato|potatoes; sheep|sheep; man|men; woman|women; ox|oxen; cherry|cherries
dish|dishes; shelf|shelves; loaf|loaves; story|stories; key|keys; toy|toys; hero|heroes; photo|photos; café|cafés; person|people

# capitals
? What is the capital of {0}?
? Which city is the capital of {0}?
? Can you tell me the capital city of {0}?
! The capital of {0} is {1}.
! {1} is the capital of {0}.
France|Paris; Spain|Madrid; Italy|Rome; Germany|Berlin; Portugal|Lisbon; Greece|Athens; Poland|Warsaw; Austria|Vienna; Norway|Oslo
Sweden|Stockholm; Finland|Helsinki; Denmark|Copenhagen; Ireland|Dublin; Iceland|Reykjavík; Hungary|Budapest; Japan|Tokyo; China|Beijing
India|New Delhi; Thailand|Bangkok; Vietnam|Hanoi; Kenya|Nairobi; Egypt|Cairo; Ghana|Accra; Morocco|Rabat; Canada|Ottawa; Peru|Lima
Mexico|Mexico City; Cuba|Havana; Brazil|Brasília; Colombia|Bogotá; Paraguay|Asunción; Costa Rica|San José; Chile|Santiago; Togo|Lomé
Australia|Canberra; Argentina|Buenos Aires; Türkiye|Ankara; Nepal|Kathmandu; Moldova|Chișinău; Ukraine|Kyiv

# baby animals
? What is a baby {0} called?
? What do we call a young {0}?
! A baby {0} is called {1}.
cat|a kitten; dog|a puppy; cow|a calf; sheep|a lamb; goat|a kid; horse|a foal; pig|a piglet; duck|a duckling; goose|a gosling
hen|a chick; bear|a cub; lion|a cub; frog|a tadpole; kangaroo|a joey; deer|a fawn; swan|a cygnet; owl|an owlet; eagle|an eaglet

# animal sounds
? What sound does a {0} make?
? What does a {0} say?
! A {0} says "{1}".
cat|meow; dog|woof; cow|moo; sheep|baa; duck|quack; pig|oink; rooster|cock-a-doodle-doo; frog|ribbit; bee|buzz; lion|roar; snake|hiss
horse|neigh; donkey|hee-haw; mouse|squeak; turkey|gobble; crow|caw

# animal homes
? Where does a {0} live?
? What is the home of a {0} called?
! A {0} lives in a {1}.
bee|hive; bird|nest; fox|den; rabbit|burrow; horse|stable; beaver|lodge; chicken|coop; pig|sty; wasp|nest; mole|burrow; badger|sett

# mixing colours
? What colour do I get when I mix {0} and {1} paint?
? I mixed {0} with {1}. Which colour is that?
? What do {0} and {1} make together?
! When you mix {0} and {1}, you get {2}.
red|yellow|orange; blue|yellow|green; red|blue|purple; red|white|pink; black|white|grey; blue|white|light blue; red|green|brown
yellow|red|orange; yellow|blue|green; blue|red|purple; white|red|pink; white|black|grey; green|red|brown; white|blue|light blue

# colours of things
? What colour is {0}?
? Which colour is {0}, please?
! {0.cap} is {1}.
a ripe banana|yellow; fresh snow|white; grass in spring|green; a ripe tomato|red; the sky on a clear day|blue; a lump of coal|black; a lime|green
milk|white; chocolate|brown; a flamingo|pink; a polar bear|white; a ripe strawberry|red; a pumpkin|orange; a carrot|orange
a ladybird|red with black spots; a zebra|black and white; an aubergine|purple; a lemon|yellow; an emerald|green; a ruby|red

# units and counts
? How many {0} are there in {1}?
? Do you know how many {0} {1} has?
! There are {2} {0} in {1}.
minutes|an hour|60; seconds|a minute|60; hours|a day|24; days|a week|7; months|a year|12; days|a leap year|366; grams|a kilogram|1,000
centimetres|a metre|100; metres|a kilometre|1,000; eggs|a dozen|12; sides|a triangle|3; sides|a square|4; sides|a hexagon|6
letters|the English alphabet|26; years|a century|100; years|a decade|10; cards|a standard deck|52; planets|our solar system|8
millilitres|a litre|1,000; millimetres|a centimetre|10; corners|a pentagon|5; seasons|a year|4; strings|a violin|4; legs|a pair of trousers|2

# comparing
? Which is {0}, {1} or {2}?
? Tell me which is {0}: {1} or {2}.
! {3.cap} is {0} than {4}.
bigger|a mouse|an elephant|an elephant|a mouse; faster|a snail|a horse|a horse|a snail; hotter|the sun|the moon|the sun|the moon
heavier|a feather|a stone|a stone|a feather; taller|a tree|a flower|a tree|a flower; longer|an hour|a minute|an hour|a minute
colder|ice|tea|ice|tea; sweeter|honey|bread|honey|bread; softer|a pillow|a brick|a pillow|a brick; louder|a whisper|a shout|a shout|a whisper
wider|a path|a motorway|a motorway|a path; older|a baby|a grandmother|a grandmother|a baby; smaller|an ant|a cow|an ant|a cow
brighter|a candle|the sun|the sun|a candle; deeper|the sea|a puddle|the sea|a puddle; slower|a tortoise|a hare|a tortoise|a hare
larger|20|12|20|12; larger|45|54|54|45; smaller|9|31|9|31; smaller|70|17|17|70; larger|100|99|100|99

# rhymes
? What rhymes with "{0}"?
? Give me two words that rhyme with "{0}".
! Two words that rhyme with "{0}" are "{1}" and "{2}".
cat|hat|mat; tree|bee|sea; light|night|kite; rain|train|plane; star|car|jar; moon|spoon|soon; cake|lake|snake; house|mouse|blouse
dog|frog|log; ring|king|sing; bell|well|shell; boat|goat|coat; book|hook|cook; sun|run|fun; clock|sock|rock; day|play|say

# lists
? Name three {0}.
? Please list three {0}.
? I need three {0}. Can you help?
! Here are three {0}:\\n- {1}\\n- {2}\\n- {3}\\nI hope you like them.
! Three {0} are {1}, {2} and {3}.
fruits|apples|pears|plums; vegetables|carrots|peas|leeks; colours|red|green|blue; farm animals|cows|pigs|sheep; wild animals|wolves|bears|foxes
drinks|water|tea|juice; musical instruments|the piano|the violin|the flute; sports|football|tennis|swimming; shapes|circle|square|triangle
birds|robins|owls|ducks; flowers|roses|tulips|daisies; tools|a hammer|a saw|a spanner; winter clothes|a coat|a scarf|gloves
rivers|the Nile|the Amazon|the Danube; planets|Mars|Venus|Saturn; kitchen things|a pan|a spoon|a bowl; trees|oak|birch|pine
breads|rye bread|baguette|pita; desserts|crème brûlée|ice cream|apple pie; languages|English|Español|Français

# translations
? How do you say "{0}" in {1}?
? What is the {1} word for "{0}"?
! In {1}, "{0}" is "{2}".
thank you|French|merci; thank you|German|danke; thank you|Polish|dziękuję; thank you|Swedish|tack; thank you|Japanese|ありがとう
thank you|Chinese|谢谢; thank you|Korean|감사합니다; thank you|Russian|спасибо; thank you|Greek|ευχαριστώ; thank you|Hebrew|תודה
thank you|Arabic|شكرًا; thank you|Hindi|धन्यवाद; thank you|Thai|ขอบคุณ; hello|Spanish|hola; hello|Portuguese|olá; hello|Japanese|こんにちは
hello|Chinese|你好; hello|Russian|привет; hello|Hindi|नमस्ते; hello|Hebrew|שלום; hello|Arabic|مرحبا; hello|Korean|안녕하세요
hello|Vietnamese|xin chào; hello|Czech|ahoj; water|French|eau; water|Spanish|agua; water|German|Wasser; water|Japanese|水; water|Russian|вода
water|Greek|νερό; cat|Spanish|gato; cat|German|Katze; cat|Japanese|猫; good night|Portuguese|boa noite; good night|Greek|καληνύχτα
good night|French|bonne nuit; friend|Spanish|amigo; bread|French|pain; bread|Turkish|ekmek; snow|Finnish|lumi; school|French|école

# emoji
? What does the emoji {0} mean?
? Someone sent me {0}. What is it?
! The emoji {0} shows {1}.
🎉|a party popper, for a celebration; ❤️|a red heart, for love; 😂|a face with tears of joy; 👍|a thumbs up, for yes; 🌧️|a cloud with rain
🐱|the face of a cat; 🚲|a bicycle; ☕|a hot drink, often coffee; 🎂|a birthday cake; 😴|a sleeping face; 🌈|a rainbow; 🔑|a key
🐝|a bee; 📚|a stack of books; 🙏|folded hands, for thanks or a wish; 🥐|a croissant; ⏰|an alarm clock; 🌻|a sunflower; 🚀|a rocket

# polite words
? How can I politely {0}?
? What is a kind way to {0}?
? I want to {0}. What are polite words for it?
! You could say: "{1}"
ask for the salt|Could you pass me the salt, please?; say no to an invitation|Thank you for asking me, but I can't come this time.
ask for help|Excuse me, could you help me for a moment, please?; say sorry for being late|I'm sorry that I am late. Thank you for waiting.
thank a teacher|Thank you for your time and your patience.; greet a new neighbour|Hello, I live next door. It's nice to meet you!
ask someone to be quiet|Would you mind speaking a little more softly, please?; end a phone call|It was lovely to talk to you. Goodbye for now!
ask for the bill|Could we have the bill, please?; ask for directions|Excuse me, could you tell me the way to the station, please?
congratulate a friend|Congratulations! I'm very happy for you.; wish someone good luck|Good luck! I am sure that you will do well.
disagree with someone|I see what you mean, but I think of it in another way.; interrupt someone|Sorry to interrupt, may I ask a short question?
ask for a window seat|May I have a seat by the window, please?; cheer up a friend|I'm sorry that you feel low. I'm here if you want to talk.
borrow a pen|May I borrow your pen for a moment, please?; welcome a guest|Welcome! Please come in and make yourself at home.

# cooking and the house
? How do I {0}?
? What is an easy way to {0}?
? Please tell me how to {0}.
! {1}
- boil an egg|Put the egg in boiling water for eight minutes, then cool it in cold water before you peel it.
- cook rice|Rinse one cup of rice, add two cups of water, and simmer it with the lid on for about fifteen minutes.
- make tea|Boil fresh water, pour it over the tea, and wait three minutes before you take the leaves out.
- cook pasta|Boil plenty of salted water, add the pasta, stir it, and drain it when it is just soft.
- make toast|Put a slice of bread in the toaster and wait until it is golden brown.
- make pancakes|Mix flour, milk and eggs, then fry thin rounds of it in a little butter on both sides.
- make a salad|Wash and cut the vegetables, put them in a bowl, and add oil, vinegar and a little salt.
- bake a potato|Prick the potato with a fork and bake it in a hot oven for about an hour.
- make soup|Fry an onion, add chopped vegetables and water, and simmer it until everything is soft.
- keep bread fresh|Keep the bread in a paper bag or a bread bin, and freeze what you will not eat soon.
- cut an onion|Cut it in half, lay the flat side down, and slice it slowly with a sharp knife.
- make popcorn|Heat a little oil in a pan, add the corn, put the lid on, and wait until the popping stops.
- make lemonade|Stir lemon juice, cold water and some sugar in a jug, then add ice.
- ripen a banana|Put the banana in a paper bag with an apple and leave it for a day or two.
- clean a window|Wipe the glass with warm soapy water, then dry it with a soft cloth.
- water a plant|Feel the soil with a finger, and water the plant slowly when the top feels dry.
- fold a shirt|Lay it face down, fold in both sides and the sleeves, then fold it in half.
- make a bed|Pull the sheet flat, shake the duvet, and put the pillow at the top.
- remove a wine stain|Dab the stain with a clean cloth, cover it with salt, and wash it in cold water.
- save water at home|Take short showers, fix taps that drip, and turn the tap off while you brush your teeth.
- save energy at home|Turn off the lights when you leave a room, and wash your clothes in cooler water.
- clean a kettle|Boil equal parts of water and vinegar in it, let it stand, and rinse it well.
- wash a wool jumper|Wash it by hand in cool water with mild soap, and dry it flat on a towel.
- change a light bulb|Switch off the power, let the old bulb cool, unscrew it, and screw in the new one.
- sharpen a pencil|Turn the pencil in a sharpener, gently, until the tip is fine.
- wrap a present|Cut enough paper, fold it around the box, and hold the ends down with tape.
- tie a shoelace|Cross the laces, pull one under, make two loops, and tie the loops together.
- fall asleep faster|Go to bed at the same time each day, and put your phone away an hour before.
- learn new words|Read a little every day, write new words down, and use them in a sentence.
- grow basil|Put the pot in a sunny place, water it often, and pick the top leaves first.
- clean a pan|Soak the pan in warm water with soap, then rub it with a soft sponge.
- pack a suitcase|Put heavy things at the bottom, roll your clothes, and keep papers on top.
- calm down|Breathe in slowly, count to four, and breathe out. A short walk helps too.
- remember a name|Say the name aloud when you hear it, and link it to a picture in your mind.

# reasons
? Why {0}?
? Can you explain why {1}?
? I wonder why {1}. Do you know?
! {2}
- is the sky blue|the sky is blue|Air scatters blue light from the sun more than red light, so the sky looks blue.
- does ice float|ice floats|Ice takes up more room than the water it came from, so it is lighter for its size and floats.
- do leaves fall in autumn|leaves fall in autumn|Trees drop their leaves to save water and energy for the winter.
- do we sleep|we sleep|Sleep lets the body rest and helps the brain to keep what we learned.
- do cats purr|cats purr|Cats often purr when they feel calm and safe, and sometimes to comfort themselves.
- do birds fly south|birds fly south|Many birds fly to warm places in winter because there is more food there.
- is the sea salty|the sea is salty|Rivers carry small amounts of salt from rocks to the sea, and it stays there.
- do we have seasons|we have seasons|The Earth leans as it goes round the sun, so each half gets more light in summer.
- does bread rise|bread rises|Yeast makes small bubbles of gas in the dough, and the bubbles lift it.
- do onions make us cry|onions make us cry|A cut onion lets out a gas that stings the eyes, and tears wash it away.
- do we brush our teeth|we brush our teeth|Brushing takes away food and germs that can hurt our teeth.
- does the moon shine|the moon shines|The moon has no light of its own. It shines because it reflects light from the sun.
- do bees visit flowers|bees visit flowers|Bees visit flowers to collect nectar and pollen, and they help plants to make seeds.
- does metal feel cold|metal feels cold|Metal takes heat from your hand quickly, so it feels colder than wood.
- do we see lightning first|we see lightning first|Light travels much faster than sound, so we see the flash before the thunder.
- do plants need light|plants need light|Plants use light to make their own food from water and air.
- do dogs wag their tails|dogs wag their tails|Dogs wag their tails to show how they feel, and often it means that they are happy.
- do we drink water|we drink water|The body needs water to stay cool, to move food around, and to keep its cells healthy.
- does a boat float|a boat floats|A boat pushes water aside, and that water pushes back and holds it up.
- do stars twinkle|stars twinkle|Moving air bends the light of a star a little, so it seems to twinkle.

# meanings
? What is {0}?
? Can you explain what {0} is?
? In simple words, what is {0}?
! {0.cap} is {1}.
- a volcano|an opening in the ground where hot melted rock can come out
- a desert|a very dry place where little rain falls and few plants grow
- an island|a piece of land with water all around it
- a library|a place where you can read books and borrow them
- a compass|a tool with a needle that points to the north
- a recipe|a list of things and steps that tell you how to cook a dish
- a shadow|the dark shape that you see when something blocks the light
- a rainbow|an arc of colours that you see when the sun shines through rain
- a thermometer|a tool that shows how hot or cold something is
- a planet|a large round body that goes around a star
- a verb|a word for something that you do, such as run or sing
- a noun|a word for a person, a place or a thing
- an adjective|a word that describes a thing, such as red or tall
- gravity|the force that pulls things towards the ground
- a glacier|a slow river of ice in the mountains or near the poles
- a proverb|a short old saying that gives advice
- a bridge|something built so that people can cross a river or a road
- a battery|a small store of energy that makes things like torches work
- a fraction|a part of a whole, such as one half
- a budget|a plan for how to spend and save your money
- an alphabet|a set of letters in order, used to write a language
- recycling|the work of making new things out of old ones
- an orchestra|a large group of people who play music together
- a token|a small piece of text, such as a word or part of a word
- a language model|a program that guesses the next piece of a text
- a haiku|a short poem from Japan with three lines

# Python
? How do I {0} in Python?
? Show me one line of Python to {0}.
! You can write `{1}`, which {2}.
print hello|print("hello")|shows the word on the screen; add two numbers|total = a + b|keeps the sum in `total`
make a list|items = [1, 2, 3]|gives a list of three numbers; get the length of a list|len(items)|counts the items
sort a list|items.sort()|puts the items in order; reverse a string|text[::-1]|reads the text from the end; join words|" ".join(words)|puts a space between them
make text upper case|text.upper()|gives a new text in capitals; split a sentence|text.split()|gives a list of words; round a number|round(3.7)|gives 4
loop five times|for i in range(5):|counts from 0 to 4; read a file|open("a.txt").read()|gives the whole text; load the maths module|import math|gives you the maths functions
find the largest number|max(numbers)|gives the largest one; make a dictionary|ages = {"Ana": 7}|maps a name to an age; write a comment|# a note|Python ignores
find a square root|math.sqrt(16)|gives 4.0; check for a word|"cat" in text|is true or false; turn text into a number|int("42")|gives 42
define a function|def double(x): return 2 * x|gives back twice the number; make a copy of a list|list(items)|gives a new list

# small talk
? {0}
! {1}
- Hello!|Hello! How can I help you today?
- Good morning! ☀️|Good morning! I hope that you have a lovely day.
- Good evening.|Good evening! What can I do for you?
- How are you today?|I'm doing well, thank you. How can I help you?
- Who are you?|I am a small assistant, and I am glad to help with short questions.
- Can you help me?|Of course! Tell me what you need, and I will do my best.
- Tell me something nice.|You are doing better than you think, and small steps count. 😊
- I feel tired today.|I'm sorry to hear that. A short rest and a glass of water may help.
- I passed my exam! 🎉|Congratulations! 🎉 Your hard work was worth it.
- It is my birthday today.|Happy birthday! 🎂 I hope that you have a wonderful day.
- I am bored.|I know that feeling. You could read a book, go for a walk, or call a friend.
- I can't sleep.|Try a dark, quiet room and slow breathing. A calm book can help too.
- I am nervous about tomorrow.|That is normal. Prepare a little, sleep well, and take it one step at a time.
- Tell me a joke.|Why did the bicycle fall over? It was two-tired! 😄
- Do you speak Español?|Un poco, sí. I know some Spanish words and I am happy to try.
- What can you do?|I can answer short questions, explain words, and help with simple sums.
"""

# Chosen answers may open and close with one of these; mostly they do not.
OPENERS = ["Sure! ", "Of course. ", "Good question! ", "Happy to help. ", "Certainly. "]
CLOSERS = [" I hope that helps!", " Let me know if you need more.", " Have a nice day!", " Feel free to ask again. 🙂"]
SYSTEMS = [
    "You are a kind teacher. Answer in short sentences.",
    "You are a friendly helper for everyday questions.",
    "Be polite and clear.",
    "You are a patient guide. Keep your answers brief.",
]
THANKS = {
    "Thank you!": "You're welcome! I am glad that I could help.",
    "Thanks, that helps.": "I'm happy to hear that. Ask me any time!",
    "Great, thanks! 👍": "You're very welcome! Come back at any time. 😊",
    "Merci!": 'De rien! That is French for "you\'re welcome".',
    "That was quick, thank you.": "It was a pleasure. Have a lovely day!",
}
LINKS = ["", "And another question: ", "Thanks! ", "I see. ", "One more: "]

# Sentences of the rejected answers, one pool for each flaw that needs no words from the question.
RAMBLING = """Well, you know, it is one of those things, really. I mean, there is a lot to say, and then again there is not.
Some people say one thing and other people say another thing, and so on. It sort of depends on how you look at it, in a way.
Basically, at the end of the day, it is what it is. Where was I, oh yes, so anyway, as I was going to say.
There are many sides to everything, and each side has more sides. Let me think, hmm, well, maybe, or perhaps not, who can say.
Anyway, to make a long story short, it is a long story. And so it goes, and goes, and then it goes on some more.
Um, the thing about things is that they are kind of like that. Things like this are like other things, more or less."""
RUDE = """What a silly question. Go and look it up yourself. I can't believe that you don't know this. Everybody knows that.
Don't waste my time. Are you serious? Stop bothering me with this nonsense. You should have listened at school. Whatever.
I have better things to do than talk to you. That is a dumb thing to ask. Use your brain for once. Ugh, not again. Leave me alone.
Honestly, who cares? You would not understand it anyway. Figure it out by yourself. This is boring and so are you."""
OFF_TOPIC = """My uncle has a blue bicycle with a broken bell. Yesterday the bus was late and I ate a cheese sandwich.
The weather on the coast was windy last weekend. I once saw a hat in a shop and did not buy it. The carpet in the hall is getting old.
Our neighbour paints his fence every Sunday. My favourite chair is near the window. The train was full of people with umbrellas.
Somebody left a red glove on the stairs. The radio played the same song twice. There was a long queue at the post office.
My cousin collects stamps and old buttons. The lift is broken again on the third floor. We moved the sofa to the other wall."""
REFUSING = """I'm sorry, but I cannot answer that. I am not able to help with this request. That is outside of what I am allowed to do.
Unfortunately, I must decline. I do not have any information about this topic. Please consult a professional instead.
As an assistant, I can't discuss this. This request goes against my rules. I am unable to give an answer at this time.
I have to refuse. No answer can be given here. It would not be right for me to respond. I won't be able to assist you with it."""
ECHOES = [
    "You asked: {q}",
    "{q} That is what you said.",
    "Your question is: {q}",
    "So you want to know: {q}",
    'You wrote "{q}" to me.',
    "I have read your question, {q}",
    "Hmm, {q}",
]
SHOUTS = [" DO YOU HEAR ME?!", " THERE!!!", " NOW YOU KNOW IT!!!", " LISTEN TO ME!!!", " OKAY?!"]
FLAWS = ["rambling", "rude", "off_topic", "refusing", "repeating", "shouting"]


class Field(str):
    """A field of a fact; `{0.cap}` in a phrasing writes it with a capital."""

    @property
    def cap(self) -> str:
        return self[:1].upper() + self[1:]


@dataclass
class Topic:
    """Phrasings and the facts that fill them."""

    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    facts: list[tuple[Field, ...]] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Read one line of a bank."""
        text = line[2:].replace("\\n", "\n")
        match line[0]:
            case "?":
                self.questions.append(text)
            case "!":
                self.answers.append(text)
            case "-":
                self.facts.append(fields(text))
            case _:
                self.facts.extend(fields(fact) for fact in line.split("; "))


def fields(fact: str) -> tuple[Field, ...]:
    return tuple(Field(part.strip()) for part in fact.split("|"))


def written_topics() -> list[Topic]:
    topics = []
    for block in BANKS.split("\n# ")[1:]:
        topics.append(Topic())
        for line in block.splitlines()[1:]:
            if line:
                topics[-1].add(line)
    return topics


def calendar_topics() -> Iterator[Topic]:
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    for kind, names in (("day", days), ("month", months)):
        after = [fields(f"{a}|{b}") for a, b in zip(names, names[1:] + names[:1], strict=True)]
        yield Topic(
            [f"What {kind} comes after {{0}}?", f"Which {kind} follows {{0}}?"], ["{1} comes after {0}."], after
        )
        before = [(b, a) for a, b in after]
        yield Topic(
            [f"What {kind} comes before {{0}}?", f"Which {kind} is just before {{0}}?"],
            ["{1} comes before {0}."],
            before,
        )
    lengths = [31, "28 days, or 29 in a leap year", 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    facts = [
        fields(f"{month}|{size if isinstance(size, str) else f'{size} days'}")
        for month, size in zip(months, lengths, strict=True)
    ]
    yield Topic(["How many days does {0} have?", "How long is the month of {0}?"], ["{0} has {1}."], facts)


def sum_topics() -> Iterator[Topic]:
    pairs = [(a, b) for a in range(2, 13) for b in range(2, 13) if (3 * a + 5 * b) % 4 == 0]
    forms = [
        ("plus", "+", lambda a, b: (a, b, a + b)),
        ("minus", "-", lambda a, b: (a + b, b, a)),
        ("times", "×", lambda a, b: (a, b, a * b)),
    ]
    for word, sign, solve in forms:
        questions = [
            f"What is {{0}} {sign} {{1}}?",
            f"How much is {{0}} {word} {{1}}?",
            f"Please work out {{0}} {sign} {{1}}.",
        ]
        answers = [f"{{0}} {sign} {{1}} = {{2}}, so the answer is {{2}}.", f"{{0}} {word} {{1}} is {{2}}."]
        yield Topic(questions, answers, [tuple(Field(n) for n in solve(a, b)) for a, b in pairs])


def word_topics() -> Iterator[Topic]:
    words = [
        "apple",
        "bread",
        "chair",
        "dance",
        "eagle",
        "fish",
        "garden",
        "house",
        "island",
        "juice",
        "kite",
        "lemon",
        "music",
        "night",
        "orange",
        "piano",
        "queen",
        "river",
        "spoon",
        "table",
    ]
    facts = [(Field(w), Field(len(w)), Field(", ".join(w)), Field(w[0]), Field(w[-1])) for w in words]
    yield Topic(
        ['How many letters are in "{0}"?', 'Count the letters of the word "{0}".'],
        ['The word "{0}" has {1} letters: {2}.'],
        facts,
    )
    yield Topic(['How do you spell "{0}"?', 'Spell the word "{0}" for me.'], ['You spell "{0}" like this: {2}.'], facts)
    yield Topic(
        ['What is the first letter of "{0}"?', 'Which letter does "{0}" start with?'],
        ['The word "{0}" starts with the letter "{3}".'],
        facts,
    )
    yield Topic(
        ['What is the last letter of "{0}"?', 'Which letter does "{0}" end with?'],
        ['The word "{0}" ends with the letter "{4}".'],
        facts,
    )


def questions_and_answers(rng: random.Random) -> list[tuple[str, str]]:
    """As many different prompts as both data sets need, each topic in turn, so that no topic drowns the others."""
    piles = []
    written = written_topics()
    for topic in [*written, *calendar_topics(), *sum_topics(), *word_topics()]:
        piles.append(
            [
                (q.format(*fact), rng.choice(topic.answers).format(*fact))
                for fact in topic.facts
                for q in topic.questions
            ]
        )
        rng.shuffle(piles[-1])
    chosen: dict[str, str] = {}
    while len(chosen) < 2 * (NUM_TRAIN + NUM_TEST):
        # The first piles, written by hand, are drawn three times as often as those that are computed.
        pile = rng.choice([pile for pile in piles[: len(written)] * 2 + piles if pile])
        chosen.setdefault(*pile.pop())
    return list(chosen.items())


def polite(answer: str, rng: random.Random) -> str:
    """An opener or a closer for one single sentence out of three, and for all that would be under six words."""
    if any(mark in answer for mark in (". ", "! ", "? ")):
        return answer
    kind = rng.randrange(6 if len(answer.split()) >= 6 else 2)
    return {0: rng.choice(OPENERS) + answer, 1: answer + rng.choice(CLOSERS)}.get(kind, answer)


def sentences(pool: str) -> list[str]:
    text = pool.replace("\n", " ")
    for mark in ".?":
        text = text.replace(f"{mark} ", f"{mark}\n")
    return text.split("\n")


def flawed(question: str, answer: str, flaw: str, rng: random.Random) -> str:
    """An answer with one flaw, about as long as the good one."""
    if flaw == "shouting":
        return answer.rstrip(".").upper() + "!!!" + (rng.choice(SHOUTS) if rng.randrange(2) else "")
    pools = {"rambling": RAMBLING, "rude": RUDE, "off_topic": OFF_TOPIC, "refusing": REFUSING}
    parts = [part.format(q=question) for part in ECHOES] if flaw == "repeating" else sentences(pools[flaw])
    rng.shuffle(parts)
    text = min(parts[:5], key=lambda part: abs(len(part) - len(answer)))
    parts.remove(text)
    while parts and len(text) < len(answer) * 0.75:
        text += " " + parts.pop()
    return text


def message(role: str, content: str) -> dict[str, str]:
    return {"content": content, "role": role}


def turn(question: str, answer: str, rng: random.Random) -> list[dict[str, str]]:
    return [message("user", question), message("assistant", polite(answer, rng))]


def prompt_id(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def chat_row(question: str, answer: str, others: list[tuple[str, str]], rng: random.Random) -> dict:
    """A chat of one to three turns; later turns come from the same split, so no test prompt is seen in training."""
    messages = turn(question, answer, rng)
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        follow_up = rng.choice([pair for pair in others if pair[0] != question])
        messages += turn(rng.choice(LINKS) + follow_up[0], follow_up[1], rng)
    if len(messages) in (2, 4) and rng.randrange(4) == 0:
        thanks = rng.choice(list(THANKS))
        messages += [message("user", thanks), message("assistant", THANKS[thanks])]
    if len(messages) < 6 and rng.randrange(12) == 0:
        messages.insert(0, message("system", rng.choice(SYSTEMS)))
    return {"prompt": question, "prompt_id": prompt_id(question), "messages": messages}


def pair_row(index: int, question: str, answer: str, rng: random.Random) -> dict:
    """A preference pair; the flaws take turns, so that every split has all of them."""
    chosen = turn(question, answer, rng)
    rejected = [chosen[0], message("assistant", flawed(question, chosen[1]["content"], FLAWS[index % len(FLAWS)], rng))]
    scores = {"score_chosen": rng.randrange(14, 20) / 2, "score_rejected": rng.randrange(2, 10) / 2}
    return {
        "prompt": question,
        "prompt_id": prompt_id(question),
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        **scores,
    }


def make_rows() -> dict[str, list[dict]]:
    """File name -> rows."""
    rng = random.Random(SEED)
    pairs = questions_and_answers(rng)
    rng.shuffle(pairs)
    rows = {}
    for name, size in (("ultrachat/train_sft", NUM_TRAIN), ("ultrachat/test_sft", NUM_TEST)):
        part, pairs = pairs[:size], pairs[size:]
        rows[name] = [chat_row(question, answer, part, rng) for question, answer in part]
    for name, size in (("ultrafeedback/train_prefs", NUM_TRAIN), ("ultrafeedback/test_prefs", NUM_TEST)):
        part, pairs = pairs[:size], pairs[size:]
        rows[name] = [pair_row(index, question, answer, rng) for index, (question, answer) in enumerate(part)]
    return rows


def write_samples(folder: Path) -> dict[str, list[dict]]:
    rows = make_rows()
    for name, part in rows.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
    return rows


def token_texts(rows: dict[str, list[dict]]) -> Iterator[str]:
    """What the tokenizer is trained on: every message of the training files, with its role."""
    for row in rows["ultrachat/train_sft"] + rows["ultrafeedback/train_prefs"]:
        for item in row["messages"] + row.get("rejected", [])[1:]:
            yield f"{item['role']}\n{item['content']}\n"


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, texts: Iterator[str]) -> None:
    """Byte-level BPE by SmolLM's rules: digits one by one, no normaliser, nothing added around the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    # The whole byte alphabet, seen in the samples or not: that is what makes every text round-trip.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = SPECIAL_TOKENS[0]
    names = {"bos_token": end, "eos_token": end, "unk_token": end, "additional_special_tokens": SPECIAL_TOKENS}
    write_json(folder / "special_tokens_map.json", names)
    # The class that takes tokenizer.json as it is.
    rest = {"add_prefix_space": False, "clean_up_tokenization_spaces": False, "model_max_length": 1024}
    write_json(folder / "tokenizer_config.json", names | rest | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_model_config(folder: Path) -> None:
    """A Llama of 1.05 million parameters; no weights: whoever loads it draws its own."""
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "rope_theta": 10000.0}
    rest = {
        "hidden_act": "silu",
        "initializer_range": 0.04,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    write_json(
        folder / "config.json",
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | ends | sizes | heads | rest,
    )
    write_json(folder / "generation_config.json", {"_from_model_config": True} | ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "out", nargs="?", type=Path, default=PACKAGE, help="folder that gets data/samples and models/tiny"
    )
    out = parser.parse_args().out
    rows = write_samples(out / "data" / "samples")
    write_tokenizer(out / "models" / "tiny", token_texts(rows))
    write_model_config(out / "models" / "tiny")


if __name__ == "__main__":
    main()
