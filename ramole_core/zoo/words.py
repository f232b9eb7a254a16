"""The word domains of the zoo and how each is split into training, development and test words.

Guarantees: the domains are disjoint; every word has 3 to 8 lower-case ASCII letters; the split is a
function of the words alone (no seed), so that a test can check what training was allowed to see.
"""

import hashlib
from functools import cache
from typing import Literal

Split = Literal["train", "dev", "test"]

NUM_TEST_WORDS = 12
NUM_DEV_WORDS = 10

_DOMAINS = {
    "animals": """
        tiger lion bear wolf fox rabbit horse donkey camel zebra giraffe elephant monkey gorilla
        panda koala otter beaver badger squirrel hamster mouse lizard snake turtle frog toad salmon
        shark whale dolphin seal walrus penguin eagle falcon hawk owl raven sparrow parrot pigeon
        goose swan ostrich spider beetle hedgehog leopard jaguar cheetah buffalo moose ferret
        weasel""",
    "foods": """
        bread butter cheese yogurt honey sugar salt rice pasta noodle pizza burger sausage bacon
        omelette pancake waffle muffin cookie biscuit cake pudding soup stew salad sandwich taco
        burrito sushi curry risotto lasagna apple banana cherry lemon melon mango peach grape potato
        carrot onion garlic spinach cabbage pepper lentil almond peanut walnut pickle mustard
        ketchup""",
    "cities": """
        paris london berlin madrid rome lisbon vienna prague warsaw dublin oslo helsinki athens
        budapest zurich geneva brussels moscow kiev istanbul cairo nairobi lagos tunis dakar delhi
        mumbai tokyo osaka kyoto seoul beijing shanghai bangkok hanoi manila jakarta sydney perth
        boston chicago denver dallas houston seattle toronto montreal havana lima bogota quito
        santiago""",
    "tools": """
        hammer screw wrench pliers chisel drill lathe sander grinder clamp vise anvil crowbar
        hatchet axe mallet shovel spade rake hoe trowel pickaxe sickle scythe shears scissors
        tweezers spanner ratchet socket level ruler caliper compass scraper file rasp saw jigsaw
        router plane awl punch bolt rivet nail ladder winch pulley jack torch solder stapler""",
    "instruments": """
        piano violin viola cello guitar banjo mandolin ukulele lute lyre harp zither sitar flute
        piccolo clarinet oboe bassoon recorder trumpet trombone tuba bugle cornet tambour drum bongo
        conga timpani cymbal gong triangle marimba psaltery celesta organ keyboard melodeon whistle
        ocarina bagpipe kazoo fiddle dulcimer theremin maraca castanet spinet""",
    "clothes": """
        shirt blouse sweater jumper cardigan jacket coat parka anorak blazer vest tunic dress skirt
        kilt trousers jeans leggings shorts overall pyjamas robe kimono sari poncho cape cloak shawl
        scarf glove mitten hat cap beret bonnet hood sock stocking shoe boot sandal slipper sneaker
        clog belt tie apron bikini corset hoodie turban""",
    "jobs": """
        baker butcher farmer teacher doctor nurse dentist surgeon lawyer judge banker cashier waiter
        barber tailor plumber welder mason painter sculptor actor singer dancer writer poet editor
        reporter pilot sailor captain soldier sheriff fireman postman miner logger fisher hunter
        shepherd gardener florist janitor porter butler maid chef engineer chemist analyst broker
        curator""",
    "plants": """
        rose tulip daisy lily orchid violet iris poppy dahlia peony lotus jasmine lavender marigold
        begonia petunia primrose bluebell snowdrop crocus daffodil hyacinth foxglove thistle clover
        fern moss ivy bamboo cactus aloe heather holly juniper cedar spruce pine fir larch oak maple
        birch beech willow elm poplar aspen alder hazel chestnut magnolia""",
}


@cache
def domain_words(domain: str, split: Split) -> tuple[str, ...]:
    """Return the words of `domain` that belong to `split`, in an order that looks random.

    The words are ordered by SHA-256; the first 12 are test words, the next 10 development words.
    """
    ranked = sorted(
        _DOMAINS[domain].split(), key=lambda word: hashlib.sha256(word.encode()).digest()
    )
    first_train = NUM_TEST_WORDS + NUM_DEV_WORDS
    if split == "test":
        return tuple(ranked[:NUM_TEST_WORDS])
    if split == "dev":
        return tuple(ranked[NUM_TEST_WORDS:first_train])
    return tuple(ranked[first_train:])


def domain_names() -> tuple[str, ...]:
    """Return the names of the word domains."""
    return tuple(_DOMAINS)


@cache
def held_out_words() -> frozenset[str]:
    """Return every development and test word: no training example may use one as its input."""
    return frozenset(
        word
        for domain in _DOMAINS
        for split in ("dev", "test")
        for word in domain_words(domain, split)
    )
