"""The vocabulary of the built-in tasks: plain tables, nothing that needs a license or a download.

No word stands in two of the kinds (no "orange", no "turkey"), or the question which of them a sentence names would
have two answers.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (pair.partition(":") for pair in text.split())}


KINDS: dict[str, tuple[str, ...]] = {
    "color": _words("red blue green yellow black white purple pink brown gray gold silver"),
    "animal": _words(
        "horse cat dog rabbit tiger lion sheep goat monkey camel fox wolf bear zebra mouse frog snake whale"
    ),
    "fruit": _words("apple banana cherry lemon mango peach pear plum grape melon kiwi papaya fig coconut"),
    "city": _words("Paris London Rome Berlin Madrid Tokyo Vienna Lisbon Dublin Cairo Boston Chicago Oslo Athens"),
    "person": _words("Anna Tom Maria Peter Lucy David Emma Oscar Nina Paul Clara Henry Alice Simon Julia Victor"),
    "tool": _words("hammer saw drill wrench shovel ladder rake chisel pliers screwdriver axe scissors"),
}

# Things whose kind a question can ask for; names of persons and colors are left out, they make odd questions.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": KINDS["animal"],
    "fruit": KINDS["fruit"],
    "city": KINDS["city"],
    "tool": tuple(tool for tool in KINDS["tool"] if tool not in ("pliers", "scissors")),
    "vehicle": _words("car truck bus train tram bicycle motorcycle ship airplane helicopter taxi tractor"),
    "vegetable": _words("carrot potato onion cabbage broccoli spinach celery radish turnip garlic"),
}

NOUNS: tuple[str, ...] = _words(
    "river stone window garden table bottle candle forest pencil letter bridge basket mirror island button carpet "
    "engine feather ladder market mountain needle ocean paper pillow planet pocket ribbon rocket shadow spoon summer "
    "ticket tower tunnel valley village winter wagon blanket cloud coffee dinner doctor farmer finger harbor jacket "
    "kitchen lamp morning number office palace queen road school teacher"
)

OPPOSITES: dict[str, tuple[str, ...]] = {
    "hot": ("cold",),
    "cold": ("hot", "warm"),
    "big": ("small", "little"),
    "small": ("big", "large"),
    "up": ("down",),
    "down": ("up",),
    "open": ("closed", "close", "shut"),
    "happy": ("sad", "unhappy"),
    "sad": ("happy",),
    "fast": ("slow",),
    "slow": ("fast", "quick"),
    "young": ("old",),
    "new": ("old",),
    "tall": ("short",),
    "long": ("short",),
    "rich": ("poor",),
    "poor": ("rich",),
    "day": ("night",),
    "night": ("day",),
    "light": ("dark", "heavy"),
    "dark": ("light", "bright"),
    "hard": ("soft", "easy"),
    "soft": ("hard",),
    "easy": ("hard", "difficult"),
    "wet": ("dry",),
    "dry": ("wet",),
    "full": ("empty",),
    "empty": ("full",),
    "good": ("bad", "evil"),
    "bad": ("good",),
    "early": ("late",),
    "late": ("early",),
    "left": ("right",),
    "in": ("out",),
    "clean": ("dirty",),
    "dirty": ("clean",),
    "strong": ("weak",),
    "weak": ("strong",),
    "loud": ("quiet", "soft"),
    "win": ("lose",),
    "love": ("hate",),
    "begin": ("end", "finish", "stop"),
    "true": ("false",),
    "high": ("low",),
    "near": ("far",),
    "thick": ("thin",),
    "wide": ("narrow",),
    "inside": ("outside",),
}

PAST_TENSES: dict[str, str] = _pairs(
    "go:went see:saw eat:ate run:ran take:took make:made come:came give:gave find:found think:thought "
    "know:knew write:wrote speak:spoke drink:drank sing:sang swim:swam begin:began buy:bought bring:brought "
    "teach:taught catch:caught sleep:slept keep:kept feel:felt leave:left meet:met sit:sat stand:stood tell:told "
    "sell:sold hear:heard lose:lost win:won pay:paid say:said send:sent build:built drive:drove ride:rode fly:flew "
    "grow:grew throw:threw break:broke choose:chose walk:walked play:played jump:jumped talk:talked work:worked "
    "look:looked call:called ask:asked help:helped open:opened clean:cleaned paint:painted"
)

PLURALS: dict[str, str] = _pairs(
    "child:children man:men woman:women mouse:mice foot:feet tooth:teeth goose:geese person:people "
    "leaf:leaves knife:knives wolf:wolves wife:wives life:lives half:halves box:boxes bus:buses dish:dishes "
    "watch:watches church:churches glass:glasses class:classes city:cities baby:babies lady:ladies story:stories "
    "country:countries family:families party:parties potato:potatoes tomato:tomatoes hero:heroes key:keys day:days "
    "toy:toys boy:boys cat:cats dog:dogs house:houses tree:trees book:books car:cars hand:hands friend:friends "
    "table:tables window:windows flower:flowers bird:birds chair:chairs river:rivers shoe:shoes"
)

CAPITALS: dict[str, tuple[str, ...]] = {
    "France": ("Paris",),
    "Germany": ("Berlin",),
    "Italy": ("Rome",),
    "Spain": ("Madrid",),
    "Portugal": ("Lisbon",),
    "England": ("London",),
    "Ireland": ("Dublin",),
    "Austria": ("Vienna",),
    "Greece": ("Athens",),
    "Norway": ("Oslo",),
    "Sweden": ("Stockholm",),
    "Denmark": ("Copenhagen",),
    "Finland": ("Helsinki",),
    "Poland": ("Warsaw",),
    "Hungary": ("Budapest",),
    "Russia": ("Moscow",),
    "Belgium": ("Brussels",),
    "Egypt": ("Cairo",),
    "Japan": ("Tokyo",),
    "China": ("Beijing",),
    "India": ("New Delhi", "Delhi"),
    "Canada": ("Ottawa",),
    "Cuba": ("Havana",),
    "Peru": ("Lima",),
    "Chile": ("Santiago",),
    "Argentina": ("Buenos Aires",),
    "Mexico": ("Mexico City",),
    "Thailand": ("Bangkok",),
    "Kenya": ("Nairobi",),
    "Iraq": ("Baghdad",),
    "Iran": ("Tehran",),
    "Ukraine": ("Kyiv", "Kiev"),
    "Romania": ("Bucharest",),
    "Vietnam": ("Hanoi",),
    "Australia": ("Canberra",),
}

DAYS: tuple[str, ...] = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS: tuple[str, ...] = _words(
    "January February March April May June July August September October November December"
)

LANGUAGES: dict[str, tuple[str, ...]] = {
    language: tuple(phrases.split("; "))
    for language, phrases in {
        "English": "The weather is nice today; We live near the sea; My brother reads a book; The train leaves soon; "
        "She drinks a cup of tea; The children play outside; Good morning, my friend; I have two sisters; "
        "The house is very old; He works in the garden",
        "French": "Il fait beau aujourd'hui; Nous habitons près de la mer; Mon frère lit un livre; "
        "Le train part bientôt; Elle boit une tasse de thé; Les enfants jouent dehors; Bonjour, mon ami; "
        "J'ai deux sœurs; La maison est très vieille; Il travaille dans le jardin",
        "Spanish": "Hoy hace buen tiempo; Vivimos cerca del mar; Mi hermano lee un libro; El tren sale pronto; "
        "Ella bebe una taza de té; Los niños juegan fuera; Buenos días, mi amigo; Tengo dos hermanas; "
        "La casa es muy vieja; Él trabaja en el jardín",
        "German": "Das Wetter ist heute schön; Wir wohnen nahe am Meer; Mein Bruder liest ein Buch; "
        "Der Zug fährt bald ab; Sie trinkt eine Tasse Tee; Die Kinder spielen draußen; Guten Morgen, mein Freund; "
        "Ich habe zwei Schwestern; Das Haus ist sehr alt; Er arbeitet im Garten",
        "Italian": "Oggi il tempo è bello; Abitiamo vicino al mare; Mio fratello legge un libro; "
        "Il treno parte presto; Lei beve una tazza di tè; I bambini giocano fuori; Buongiorno, amico mio; "
        "Ho due sorelle; La casa è molto vecchia; Lui lavora nel giardino",
    }.items()
}

PRAISE: tuple[str, ...] = _words(
    "wonderful great excellent lovely fantastic perfect superb delightful amazing pleasant"
)
BLAME: tuple[str, ...] = _words("terrible awful horrible bad poor disappointing dreadful unpleasant miserable boring")
REVIEWED: tuple[str, ...] = _words(
    "food service hotel room concert staff music weather book trip lesson dinner coffee view"
)

UP_TO_NINETEEN: tuple[str, ...] = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS: tuple[str, ...] = _words("twenty thirty forty fifty sixty seventy eighty ninety")
