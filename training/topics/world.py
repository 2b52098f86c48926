"""Tables of common knowledge: countries, calendar, colours, animals, opposites, the sky."""

from __future__ import annotations

_COUNTRIES = """
France|Paris|Europe;Germany|Berlin|Europe;Italy|Rome|Europe;Spain|Madrid|Europe
Portugal|Lisbon|Europe;the United Kingdom|London|Europe;Ireland|Dublin|Europe
Belgium|Brussels|Europe;the Netherlands|Amsterdam|Europe;Luxembourg|Luxembourg City|Europe
Switzerland|Bern|Europe;Austria|Vienna|Europe;Poland|Warsaw|Europe;Hungary|Budapest|Europe
the Czech Republic|Prague|Europe;Slovakia|Bratislava|Europe;Slovenia|Ljubljana|Europe
Croatia|Zagreb|Europe;Serbia|Belgrade|Europe;Bosnia and Herzegovina|Sarajevo|Europe
Albania|Tirana|Europe;Greece|Athens|Europe;Bulgaria|Sofia|Europe;Romania|Bucharest|Europe
Moldova|Chisinau|Europe;Ukraine|Kyiv|Europe;Belarus|Minsk|Europe;Russia|Moscow|Europe
Lithuania|Vilnius|Europe;Latvia|Riga|Europe;Estonia|Tallinn|Europe;Finland|Helsinki|Europe
Sweden|Stockholm|Europe;Norway|Oslo|Europe;Denmark|Copenhagen|Europe;Iceland|Reykjavik|Europe
Malta|Valletta|Europe;Monaco|Monaco|Europe;Montenegro|Podgorica|Europe
North Macedonia|Skopje|Europe;Turkey|Ankara|Asia;Cyprus|Nicosia|Europe;Georgia|Tbilisi|Asia
Armenia|Yerevan|Asia;Azerbaijan|Baku|Asia;Kazakhstan|Astana|Asia;Uzbekistan|Tashkent|Asia
Turkmenistan|Ashgabat|Asia;Kyrgyzstan|Bishkek|Asia;Tajikistan|Dushanbe|Asia
Afghanistan|Kabul|Asia;Pakistan|Islamabad|Asia;India|New Delhi|Asia;Nepal|Kathmandu|Asia
Bhutan|Thimphu|Asia;Bangladesh|Dhaka|Asia;Sri Lanka|Colombo|Asia;Maldives|Male|Asia
Myanmar|Naypyidaw|Asia;Thailand|Bangkok|Asia;Laos|Vientiane|Asia;Cambodia|Phnom Penh|Asia
Vietnam|Hanoi|Asia;Malaysia|Kuala Lumpur|Asia;Singapore|Singapore|Asia;Indonesia|Jakarta|Asia
the Philippines|Manila|Asia;China|Beijing|Asia;Mongolia|Ulaanbaatar|Asia
North Korea|Pyongyang|Asia;South Korea|Seoul|Asia;Japan|Tokyo|Asia;Iran|Tehran|Asia
Iraq|Baghdad|Asia;Syria|Damascus|Asia;Lebanon|Beirut|Asia;Jordan|Amman|Asia
Saudi Arabia|Riyadh|Asia;Yemen|Sanaa|Asia;Oman|Muscat|Asia;Qatar|Doha|Asia;Bahrain|Manama|Asia
Kuwait|Kuwait City|Asia;the United Arab Emirates|Abu Dhabi|Asia;Egypt|Cairo|Africa
Libya|Tripoli|Africa;Tunisia|Tunis|Africa;Algeria|Algiers|Africa;Morocco|Rabat|Africa
Mauritania|Nouakchott|Africa;Senegal|Dakar|Africa;Mali|Bamako|Africa;Niger|Niamey|Africa
Chad|N'Djamena|Africa;Sudan|Khartoum|Africa;Ethiopia|Addis Ababa|Africa;Eritrea|Asmara|Africa
Somalia|Mogadishu|Africa;Kenya|Nairobi|Africa;Uganda|Kampala|Africa;Rwanda|Kigali|Africa
Tanzania|Dodoma|Africa;Mozambique|Maputo|Africa;Zambia|Lusaka|Africa;Zimbabwe|Harare|Africa
Malawi|Lilongwe|Africa;Botswana|Gaborone|Africa;Namibia|Windhoek|Africa
South Africa|Pretoria|Africa;Angola|Luanda|Africa;Gabon|Libreville|Africa
Cameroon|Yaounde|Africa;Nigeria|Abuja|Africa;Ghana|Accra|Africa;Togo|Lome|Africa
Ivory Coast|Yamoussoukro|Africa;Liberia|Monrovia|Africa;Sierra Leone|Freetown|Africa
Guinea|Conakry|Africa;Gambia|Banjul|Africa;Madagascar|Antananarivo|Africa
Canada|Ottawa|North America;the United States|Washington, D.C.|North America
Mexico|Mexico City|North America;Guatemala|Guatemala City|North America
Honduras|Tegucigalpa|North America;El Salvador|San Salvador|North America
Nicaragua|Managua|North America;Costa Rica|San Jose|North America;Panama|Panama City|North America
Cuba|Havana|North America;Jamaica|Kingston|North America;Haiti|Port-au-Prince|North America
the Dominican Republic|Santo Domingo|North America;the Bahamas|Nassau|North America
Colombia|Bogota|South America;Venezuela|Caracas|South America;Ecuador|Quito|South America
Peru|Lima|South America;Bolivia|Sucre|South America;Brazil|Brasilia|South America
Paraguay|Asuncion|South America;Uruguay|Montevideo|South America
Argentina|Buenos Aires|South America;Chile|Santiago|South America;Guyana|Georgetown|South America
Suriname|Paramaribo|South America;Australia|Canberra|Oceania;New Zealand|Wellington|Oceania
Fiji|Suva|Oceania;Papua New Guinea|Port Moresby|Oceania;Samoa|Apia|Oceania
"""
COUNTRIES: tuple[tuple[str, str, str], ...] = tuple(
    (country, capital, continent)
    for line in _COUNTRIES.split("\n")
    if line
    for country, capital, continent in (entry.split("|") for entry in line.split(";"))
)
"""(country, capital, continent)"""
CAPITALS = tuple(capital for _, capital, _ in COUNTRIES)

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS = "spring summer autumn winter".split()
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
RAINBOW = "red orange yellow green blue indigo violet".split()
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHAPES = {
    "triangle": 3, "square": 4, "rectangle": 4, "pentagon": 5, "hexagon": 6, "heptagon": 7,
    "octagon": 8,
}  # fmt: skip

COLOURS: dict[str, str] = {
    thing: colour
    for colour, things in {
        "yellow": "a banana,a lemon,the sun,a sunflower,corn,butter,a canary,a chick",
        "red": "a tomato,a strawberry,blood,a cherry,a fire engine,a ruby,a stop sign,ketchup",
        "green": "grass,a leaf,a cucumber,a frog,a lime,spinach,an emerald,broccoli,a pea",
        "blue": "the sky,the sea,a sapphire,a blueberry,the ocean",
        "orange": "a carrot,an orange,a pumpkin,an apricot,a basketball",
        "white": "snow,milk,salt,a polar bear,a swan,rice,chalk,flour,a cloud,cotton",
        "black": "coal,a raven,the night sky,a crow,tar,a tyre,a panther",
        "brown": "chocolate,a chestnut,coffee,wood,a bear,soil,an otter",
        "purple": "a plum,an aubergine,lavender,an amethyst",
        "pink": "a flamingo,a pig,a piglet",
        "grey": "an elephant,a mouse,a rain cloud,a dolphin,ash,concrete",
        "black and white": "a zebra,a panda,a penguin,a chessboard",
        "gold": "a gold ring,a gold medal",
        "silver": "a silver coin,a silver spoon",
    }.items()
    for thing in things.split(",")
}
MIXTURES = {
    ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple",
    ("red", "white"): "pink", ("black", "white"): "grey", ("red", "green"): "brown",
}  # fmt: skip

OPPOSITES = tuple(
    (a, b)
    for a, b in (
        pair.split("-")
        for pair in (
            "hot-cold big-small tall-short fast-slow old-young light-dark day-night up-down "
            "left-right in-out open-closed full-empty happy-sad good-bad rich-poor strong-weak "
            "wet-dry hard-soft early-late high-low near-far first-last clean-dirty loud-quiet "
            "thick-thin wide-narrow heavy-light black-white yes-no begin-end start-stop "
            "push-pull win-lose buy-sell give-take come-go love-hate true-false right-wrong "
            "brave-afraid sweet-sour awake-asleep alive-dead deep-shallow inside-outside "
            "above-below before-after always-never more-less many-few smooth-rough "
            "cheap-expensive easy-difficult beautiful-ugly friend-enemy laugh-cry "
            "arrive-leave accept-refuse noisy-silent sharp-blunt modern-ancient sunrise-sunset "
            "north-south east-west summer-winter top-bottom front-back question-answer "
            "remember-forget war-peace hello-goodbye"
        ).split()
    )
)

ANIMALS: dict[str, tuple[str, int, str, str]] = {
    name: (sound, int(legs), young, home)
    for name, sound, legs, young, home in (
        entry.split("|")
        for entry in (
            "cow|moos|4|calf|on a farm;dog|barks|4|puppy|with people;cat|meows|4|kitten|with people"
            ";sheep|bleats|4|lamb|on a farm;horse|neighs|4|foal|on a farm;pig|oinks|4|piglet|on a "
            "farm;duck|quacks|2|duckling|by ponds;chicken|clucks|2|chick|on a farm;lion|roars|4|cub"
            "|in the savanna;wolf|howls|4|pup|in forests;owl|hoots|2|owlet|in trees;frog|croaks|4|"
            "tadpole|in ponds;bee|buzzes|6|larva|in a hive;snake|hisses|0|snakelet|in grass and "
            "deserts;goat|bleats|4|kid|in the mountains;donkey|brays|4|foal|on a farm;elephant|"
            "trumpets|4|calf|in the savanna;bear|growls|4|cub|in forests;tiger|roars|4|cub|in the "
            "jungle;mouse|squeaks|4|pup|in holes;turkey|gobbles|2|poult|on a farm;goose|honks|2|"
            "gosling|by lakes;crow|caws|2|chick|in trees;monkey|chatters|4|infant|in the jungle;"
            "rooster|crows|2|chick|on a farm;cricket|chirps|6|nymph|in meadows;fox|barks|4|kit|in "
            "forests;seal|barks|0|pup|by the sea;dolphin|clicks|0|calf|in the sea;whale|sings|0|"
            "calf|in the sea;spider|makes no sound|8|spiderling|in a web;ant|makes no sound|6|larva"
            "|in an anthill;fish|makes no sound|0|fry|in water;rabbit|squeaks|4|kit|in burrows;"
            "kangaroo|clicks|2|joey|in Australia;penguin|honks|2|chick|in the Antarctic;camel|"
            "grunts|4|calf|in deserts;giraffe|hums|4|calf|in the savanna;deer|bleats|4|fawn|in "
            "forests;squirrel|chatters|4|kit|in trees;eagle|screams|2|eaglet|in the mountains;"
            "swan|trumpets|2|cygnet|by lakes;butterfly|makes no sound|6|caterpillar|in gardens;"
            "beetle|makes no sound|6|larva|under bark;crab|makes no sound|10|larva|by the sea;"
            "octopus|makes no sound|0|larva|in the sea;polar bear|growls|4|cub|in the Arctic;"
            "zebra|barks|4|foal|in the savanna;parrot|squawks|2|chick|in the jungle"
        ).split(";")
    )
}
"""name -> (the sound as a verb, legs, the young, where it lives)"""

SPELLED = (
    "cat dog sun moon star tree fish bird house apple water bread river stone cloud light green "
    "table chair mouse horse snow rain wind fire book door lamp ship train music garden window "
    "flower orange yellow monday friday summer winter school friend people planet animal"
).split()
