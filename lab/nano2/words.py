"""What stands on the pages: keys of words, values of digits, letters, dates, amounts."""

from __future__ import annotations

from random import Random


def listed(text: str) -> tuple[str, ...]:
    """The words of `text`."""
    return tuple(text.split())


CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.,:;/-%$#()+&'*=@!?\"_<>"
CODE = {char: number for number, char in enumerate(CHARS, 1)}  # 0 is no character
UNSURE = -1  # a character that something lies over: no label
WORDS = listed(
    """
    Total Date Qty Tax Invoice Ref Order Net Due Price Room Seat Gate Train Bus Age Code Tel Fax
    Unit Page Item Cash Change Rate Sum Paid Open Close Speed Temp Zone Lot Batch Part Size Weight
    Height Width Table Guest Server Time Flight Dock Bay Level Score Bonus Points Miles Fuel Volts
    Amps Phase Grade Class Term Year Month Week Day Hour Name Street City Plan Owner Budget Grant
    Volume Length Depth Angle Power Water Heat Light Floor Door Key Box Case Pallet Sender Carrier
    Route Stop Lane Track Car Plate Model Serial Version Build Port Host User Role Group Team Match
    Goal Set Game Round Rank Prize Fee Fine Rent Loan Debt Share Stock Bond Fund Bank Branch Account
    Card Limit Credit Debit Tip Milk Bread Butter Cheese Apples Coffee Tea Sugar Rice Salt Soap
    Paper Pens Ink Glue Tape Lamp Chair Desk Shelf Shirt Shoes Socks Gloves Copper Iron Zinc Lead
    Tin Silver Gold Sand Lime Brick Timber Visit Ward Bed Dose Pulse
    """
)
TEST_WORDS = listed(
    """
    Voucher Charge Parcel Ticket Coach Berth Locker Meter Pump Valve Basket Onions Pepper Honey Wine
    Wool Linen Nails Bolt Screw Court Judge Union Castle Harbour Bridge Tower
    """
)
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLIND = {  # answers that a model without a picture guesses in part
    "Paid": ("yes", "yes", "yes", "no"),
    "Currency": ("EUR", "EUR", "USD", "GBP"),
    "Day": ("Mon", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    "VAT": ("19%", "19%", "7%", "0%"),
    "Status": ("open", "open", "closed"),
}


def made_up(r: Random) -> str:
    """A word that no list has."""
    parts = [r.choice(CONSONANTS) + r.choice(VOWELS) for _ in range(r.randint(1, 3))]
    return "".join(parts).capitalize() + r.choice(" " + CONSONANTS).strip()


def cased(r: Random, word: str) -> str:
    """`word` in capitals, small or as it is."""
    t = r.random()
    return word.upper() if t < 0.3 else word.lower() if t < 0.42 else word


def key(r: Random, split: str) -> str:
    """One or two words; half of a test page's words stand on no other page."""
    words: tuple[str, ...] = TEST_WORDS if split == "test" and r.random() < 0.5 else WORDS
    one: str = made_up(r) if r.random() < 0.25 else r.choice(words)
    if r.random() < 0.15:
        one += " " + r.choice(("No", "ID", "A", "B", "1", "2", "in", "out", r.choice(words)))
    return cased(r, one)


def amount(r: Random) -> str:
    """An amount as receipts print it."""
    whole = r.choice((r.randint(0, 9), r.randint(10, 99), r.randint(100, 9999)))
    text = f"{whole:,}" if r.random() < 0.3 else str(whole)
    cents = r.choice((".", ".", ",")) + f"{r.randint(0, 99):02d}"
    sign = r.choice(("", "", "", "$", "-"))
    return (sign + text + cents) if "," not in text else sign + text + "." + cents[1:]


def date(r: Random) -> str:
    """A date or a time."""
    d, m, y = r.randint(1, 31), r.randint(1, 12), r.randint(0, 39)
    return r.choice(
        (
            f"{d:02d}/{m:02d}/{y:02d}",
            f"{d:02d}.{m:02d}.20{y:02d}",
            f"20{y:02d}-{m:02d}-{d:02d}",
            f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}",
        )
    )


def letters(r: Random) -> str:
    """A code of letters, or of letters and digits."""
    t = r.random()
    if t < 0.35:
        return "".join(r.choice(CAPITALS) for _ in range(r.randint(2, 5)))
    if t < 0.7:
        head = "".join(r.choice(CAPITALS) for _ in range(r.randint(1, 2)))
        return head + r.choice(("", "-")) + str(r.randint(10, 9999))
    return made_up(r)


def value(r: Random) -> str:
    """Digits, an amount, a date, letters, a share or a telephone number."""
    t = r.random()
    if t < 0.25:
        return str(r.randint(0, 10 ** r.randint(1, 5) - 1))
    if t < 0.55:
        return amount(r)
    if t < 0.72:
        return date(r)
    if t < 0.92:
        return letters(r)
    if t < 0.96:
        return f"{r.randint(0, 100)}%"
    return f"({r.randint(10, 99)}) {r.randint(100, 999)}-{r.randint(10, 99)}"


def pair(r: Random, split: str, amounts: float = 0.0) -> tuple[str, str]:
    """A key and its value, an amount for a share of them; now and then one of BLIND."""
    if r.random() < 0.08:
        name = r.choice(list(BLIND))
        return cased(r, name), r.choice(BLIND[name])
    return key(r, split), amount(r) if r.random() < amounts else value(r)


def noise(r: Random) -> str:
    """Any characters at all: no letter is rare to the encoder."""
    return "".join(r.choice(CHARS) for _ in range(r.randint(2, 9)))


def sentence(r: Random, most: int) -> str:
    """Words and now and then a number, at most `most` characters."""
    words: list[str] = []
    while True:
        t = r.random()
        word = (
            noise(r)
            if t < 0.12
            else value(r)
            if t < 0.3
            else r.choice((made_up(r), r.choice(WORDS)))
        )
        word = word if r.random() < 0.4 else word.lower()
        if len(" ".join([*words, word])) > most:
            return " ".join(words)
        words.append(word)
