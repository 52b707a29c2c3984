"""The `extract` task: a text and the wanted keys in, exactly that JSON object out. The data is made by this program."""

# ruff: noqa: E501, SIM905 (phrases stay whole, and a list of syllables reads better as text)

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from examples.demo.tasks import Record

Split = Literal["train", "heldout"]
SYSTEM = "Answer with one JSON object that holds exactly the wanted keys."

_POOLS: dict[str, Mapping[Split, str]] = {
    "first": {
        "train": "Anna Peter Maria Thomas Julia Ahmed Yuki Carlos Olga Ivan Fatima Jonas Grace Liam Emma Noah Priya Wei Sofia Diego Nina Oscar Leila Hugo Clara Kofi Elena Marco Ruth Samuel Matteo Ines Rafael Zoe Dmitri Hannah Tariq Elif Henrik Paula Sanjay Miriam Lukas Chiara Abel Freya Omar Bianca Teodor Naomi Gustav Ayesha Felix Renata",
        "heldout": "Ingrid Rashid Beatrice Tomasz Keiko Malik Rosalind Viktor Amara Stefan Lucia Desmond",
    },
    "last": {
        "train": "Smith Garcia Müller Tanaka Okafor Rossi Novak Kim Silva Johnson Brown Dubois Singh Lopez Meyer Wilson Costa Larsen Chen Baker Haddad Weber Moreau Evans Fischer Oliveira Jansen Papadopoulos Mbeki Sørensen Ricci Horvath Yamada Popescu Fernandez Dvorak MacLeod Nguyen Ivanov Eriksson Delgado Hughes Koch Banerjee Laurent",
        "heldout": "Lindqvist Abernathy Kowalski Nakamura Oyelaran Petrov Castellano Whitfield Bergström Achebe",
    },
    "city": {
        "train": "Berlin|Paris|Lisbon|Toronto|Chicago|Madrid|Oslo|Vienna|Cairo|Sydney|Boston|Lima|Prague|Dublin|Seoul|New York|Rome|Nairobi|Mumbai|Denver|Zurich|Bogota|San Jose|Krakow|Tunis|Osaka|Glasgow|Cape Town|Hamburg|Valencia|Riga|Quito|Melbourne|New Orleans|Bergen|Lagos|Brno|Salt Lake City|Antwerp|Manila",
        "heldout": "Porto|Helsinki|San Diego|Kyoto|Ghent|Montevideo|Tallinn|Accra|Buenos Aires|Leeds",
    },
    "job": {
        "train": "teacher|nurse|baker|engineer|lawyer|gardener|pilot|dentist|waiter|painter|driver|chef|tailor|journalist|carpenter|welder|translator|butcher|florist|optician|firefighter|geologist|mechanic|barber|economist|photographer|midwife",
        "heldout": "librarian|plumber|architect|violinist|locksmith|surgeon|bookkeeper|beekeeper",
    },
    "product": {
        "train": "chairs|notebooks|lamps|blankets|headphones|cups|tables|bicycles|keyboards|pencils|jackets|candles|mirrors|backpacks|plates|pillowcases|wrenches|printers|scarves|helmets|batteries|towels|ladders|puzzles|speakers|gloves|vases|tents|rugs",
        "heldout": "umbrellas|kettles|pillows|screwdrivers|monitors|raincoats|toasters|hammocks",
    },
    "company": {
        "train": "Northwind|Acme Tools|Blue River|Sunrise Foods|Delta Print|Orion Labs|Green Leaf|Silver Peak|Metro Bank|Harbor Media|Falcon Air|Pine Street Dairy|Quantum Glass|Redwood Motors|Atlas Freight|Bright Smile Dental|Kestrel Games|Nova Textiles|Stonefield Hotels|Wildflower Soap",
        "heldout": "Copper Gate|Lantern Works|Juniper Health|Ironbridge|Cedar Point Motors|Velvet Audio",
    },
    "event": {
        "train": "Spring Market|Jazz Night|Book Fair|Science Day|City Run|Wine Tasting|Film Festival|Chess Open|Garden Show|Code Camp|Winter Gala|Choir Evening|Pottery Course|Bike Swap|Startup Breakfast|Cheese Festival|Mineral Expo|Dance Marathon",
        "heldout": "Kite Parade|Harvest Dinner|Robot Workshop|Poetry Slam|Lantern Walk|Antique Fair",
    },
    "place": {
        "train": "Town Hall|Central Library|Old Mill|Grand Hotel|West Park|City Museum|Opera House|River Café|Hall 4|the Main Square|Elm Street School|Harbor Church|the Glass Pavilion|Studio 9|Riverside Arena|Hotel Meridian|the North Gate|St. Mary's Hall",
        "heldout": "Fisher Pavilion|Brick Gallery|Oak Theater|the South Pier|Room 12|Union Station",
    },
    "day": {
        "train": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|March 3|May 21|June 14|July 30|October 9|November 25|January 17",
        "heldout": "April 6|August 28|December 11|February 19|September 2|Monday|Thursday|Saturday",
    },
    "reason": {"train": "a check-up|a vaccination|back pain|a sore throat|new glasses|a blood test|a twisted ankle|an allergy"},
    "pet": {"train": "Biscuit|Luna|Rex|Pepper|Mango|Shadow|Coco|Ziggy|Waffles|Nala|Tofu|Captain"},
    "species": {"train": "dog|cat|parrot|rabbit|hamster|tortoise|pony|goat"},
    "brand": {"train": "Volvo|Toyota|Skoda|Renault|Ford|Fiat|Honda|Subaru|Opel|Mazda"},
    "color": {"train": "red|silver|dark blue|green|white|black|yellow|light grey"},
    "subject": {"train": "Spanish|pottery|algebra|first aid|guitar|chess|history|watercolour|accounting|yoga"},
    "department": {"train": "sales|research|logistics|marketing|legal|support|finance|design"},
    "hotel": {"train": "Hotel Bellevue|The Crown|Sea Breeze Inn|Alpine Lodge|Hotel Astoria|Garden Suites|The Old Post"},
    "dish": {"train": "lentil soup|apple pie|paella|mushroom risotto|pancakes|fish curry|potato salad|lasagna|goulash"},
    "title": {
        "heldout": "The Quiet Harbor|Seven Lanterns|Winter Arithmetic|A House of Salt|The Last Cartographer|Paper Mountains",
    },
}  # fmt: skip

_FILLERS: dict[Split, tuple[str, ...]] = {
    "train": ("Thank you very much.", "Please let me know if anything is unclear.", "The weather was fine.", "More details will follow.", "Best wishes!", "That is all for now.", "Hello everyone,", "See you soon.", "This message was sent by our office.", "Dear team,", "We look forward to it.", "No reply is needed.", "Just so you know,"),
    "heldout": ("Many thanks in advance.", "I hope this helps.", "Nothing else has changed.", "Good morning,"),
}  # fmt: skip


_SYLLABLES = "ba be dor fa gil han ja ka len lo mar mi na nor o pa qui ra rin sa sten ta tov u va vel wen ya zan zu".split()
_INVENTED = {"first": 0.3, "last": 0.4, "city": 0.3}
"""The share of names in training that nobody has, so that names are copied, not remembered."""


def _pick(pool: str, rng: random.Random, split: Split) -> str:
    if split == "train" and pool in _INVENTED and rng.random() < _INVENTED[pool]:
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice([2, 2, 3]))).capitalize()
    words = _POOLS[pool][split]
    return rng.choice(words.split("|") if "|" in words else words.split())


def _value(kind: str, rng: random.Random, split: Split) -> str | int:
    if kind == "person":
        return f"{_pick('first', rng, split)} {_pick('last', rng, split)}"
    if kind == "code":
        return f"{rng.choice('ABCDEFGHKLMNPRSTUVWX')}{rng.choice('ABCDEFGHKLMNPRSTUVWX')}-{rng.randint(100, 9999)}"
    if kind == "email":
        name, host = _pick("first", rng, split), _pick("last", rng, split)
        return f"{name}@{host}.{rng.choice(['com', 'org', 'net'])}".lower().encode("ascii", "ignore").decode()
    if kind == "phone":
        return f"{rng.randint(200, 999)}-{rng.randint(1000, 9999)}"
    if kind == "time":
        return f"{rng.randint(7, 22)}:{rng.choice(['00', '15', '30', '45'])}"
    if "-" in kind:
        low, high = kind.split("-")
        return rng.randint(int(low), int(high))
    return _pick(kind, rng, split)


@dataclass(frozen=True)
class Domain:
    """A kind of text: its keys with the kind of their values, and ways to write it in training and held out."""

    keys: Mapping[str, str]
    heldout: tuple[str, ...] = ()
    train: tuple[str, ...] = ()


_PERSON = Domain(
    {"name": "person", "age": "18-90", "city": "city", "job": "job"},
    train=(
        "{name} is a {age}-year-old {job} from {city}.",
        "My neighbour {name} works as a {job} in {city} and is {age} years old.",
        "At the age of {age}, {name} moved to {city} to work as a {job}.",
        "We hired {name} ({age}) as a {job} for our office in {city}.",
        "The {job} of the year comes from {city}: {name}, {age}.",
        "In {city} I met a {job} called {name}, who had just turned {age}.",
        "{name} left {city} when {age} years old; before that, a {job}.",
        "Profile. Name: {name}. Age: {age}. Home: {city}. Work: {job}.",
        "{city} has lost its best {job}, {name}, at {age}.",
        "They say that {name} became a {job} at {age}, long after leaving {city}.",
    ),
    heldout=(
        "{name}, aged {age}, earns a living as a {job} near {city}.",
        "Living in {city} since last year, {name} is {age} and has a job as a {job}.",
        "Our new {job} is {name}. The form says: {age} years, born in {city}.",
    ),
)
_ORDER = Domain(
    {"customer": "person", "quantity": "2-90", "product": "product", "price": "10-900", "city": "city"},
    train=(
        "{customer} ordered {quantity} {product} for ${price}, to be delivered to {city}.",
        "Please send {quantity} {product} to {customer} in {city}. The price is {price} dollars.",
        "Order from {city}: {quantity} {product}, total ${price}, customer {customer}.",
        "I am {customer} from {city} and I would like to buy {quantity} {product} for {price} euros.",
        "For {price} dollars {customer} got {quantity} {product} shipped to {city}.",
        "The {quantity} {product} that {customer} bought cost {price} euros and went to {city}.",
        "{price} dollars for {quantity} {product}? asked {customer}. Yes, and shipping to {city} is free.",
        "Receipt for {customer}, {city}: {product} x {quantity}, sum {price}.",
        "Today we packed {product} ({quantity} pieces, ${price}) for {customer}, who lives in {city}.",
        "Our store in {city} sold {quantity} {product} to {customer} and took {price} euros.",
    ),
    heldout=(
        "A parcel with {quantity} {product} left for {city} today; {customer} paid ${price}.",
        "{customer} wants {quantity} {product}. We charge {price} euros and ship to {city}.",
        "Invoice: ${price} for {quantity} {product}. Buyer: {customer}, {city}.",
    ),
)
_EVENT = Domain(
    {"event": "event", "day": "day", "time": "time", "place": "place", "speaker": "person"},
    train=(
        "The {event} takes place on {day} at {time} in {place}. {speaker} gives the opening talk.",
        "Join us at {place} for the {event} on {day}, {time}, with {speaker}.",
        "On {day}, {speaker} will speak at the {event}; doors of {place} open at {time}.",
        "{speaker} invites you to the {event}: {day}, {time}, {place}.",
        "Do not miss the {event}! It starts at {time} on {day}. Where: {place}. Speaker: {speaker}.",
        "At {time} on {day} the {event} begins at {place}, and {speaker} will be there.",
        "{place} hosts the {event}: {speaker} talks at {time} on {day}.",
        "Because of the rain the {event} was put off until {day}, {time}. {speaker} comes to {place} then.",
        "Have you heard {speaker} yet? {day}, {time}, at the {event} in {place}.",
        "Programme of the {event}, {day}: {time} talk by {speaker} ({place}).",
    ),
    heldout=(
        "Reminder: {speaker} opens the {event} at {place} on {day}, {time} sharp.",
        "We moved the {event} to {place}. It is now on {day} at {time}, and {speaker} still speaks.",
        "Save the date, {day}: the {event} with {speaker} begins {time} at {place}.",
    ),
)
_FLIGHT = Domain(
    {"from": "city", "to": "city", "day": "day", "departure": "time", "passenger": "person"},
    train=(
        "{passenger} flies from {from} to {to} on {day} at {departure}.",
        "Ticket for {passenger}: {from} to {to}, {day}, departure {departure}.",
        "On {day} the {departure} train takes {passenger} to {to}; it leaves from {from}.",
        "Please book a seat to {to} for {passenger}. The bus leaves {from} on {day} at {departure}.",
        "The flight of {passenger} departs at {departure} on {day}, going from {from} to {to}.",
        "To get to {to}, {passenger} has to be in {from} on {day} before {departure}.",
        "{day}, {departure}: {passenger} boards in {from}. Destination: {to}.",
        "{passenger} changed the journey to {day}. It starts in {from} at {departure} and ends in {to}.",
        "From {from} there is one bus to {to} on {day}; {passenger} takes it at {departure}.",
    ),
    heldout=(
        "{passenger} is leaving {from} at {departure} on {day} and arrives in {to} later.",
        "Your trip on {day}: {from} {departure}, then straight to {to}. Traveller: {passenger}.",
    ),
)
_FLAT = Domain(
    {"city": "city", "rooms": "1-7", "area": "25-240", "rent": "300-3000", "phone": "phone"},
    train=(
        "Flat in {city}: {rooms} rooms, {area} square meters, {rent} euros a month. Call {phone}.",
        "For rent: a home of {area} m2 with {rooms} rooms in {city} for ${rent}. Phone {phone}.",
        "We offer {rooms} rooms in {city}. The rent is {rent} euros, the area {area} m2, our number {phone}.",
        "Ring {phone} to see this flat of {area} m2 and {rooms} rooms in {city}, only {rent} dollars a month.",
        "In {city} you pay {rent} dollars for {rooms} rooms and {area} square meters; ask at {phone}.",
        "Number of rooms: {rooms}. Size: {area} m2. Rent: {rent}. Town: {city}. Telephone: {phone}.",
        "{rent} a month buys {area} m2 in {city}, says the advert: {rooms} rooms, contact {phone}.",
        "I rent out my {area} m2 apartment ({rooms} rooms) in {city}. {rent} euros, phone {phone}.",
    ),
    heldout=(
        "{city}, {rooms} rooms on {area} square meters. Monthly rent {rent}. Questions: {phone}.",
        "Dial {phone} if you want the {rooms}-room flat in {city}; {area} m2 cost {rent} euros.",
    ),
)
_CONTACT = Domain(
    {"name": "person", "company": "company", "email": "email", "phone": "phone"},
    train=(
        "{name} of {company} can be reached at {email} or {phone}.",
        "Please write to {email}; {name} from {company} will answer. Phone: {phone}.",
        "My name is {name}, I work for {company}. My number is {phone}, my mail {email}.",
        "New contact at {company}: {name}, {phone}, {email}.",
        "Call {phone} and ask for {name}. {company} also answers mails to {email}.",
        "Signed, {name}, {company}. Tel. {phone}. Mail: {email}",
        "At {company} the person to ask is {name}; use {email}, or {phone} when it is urgent.",
        "{email} belongs to {name}. {company} lists {phone} as the number.",
    ),
    heldout=(
        "{company} gave us a new partner, {name}: mail {email}, telephone {phone}.",
        "For questions turn to {name} ({email}, {phone}), who speaks for {company}.",
    ),
)
_BOOK = Domain(
    {"title": "title", "author": "person", "year": "1900-2024", "pages": "90-800"},
    heldout=(
        "{author} wrote {title} in {year}; it has {pages} pages.",
        "{title} by {author} ({year}) runs to {pages} pages.",
    ),
)
_MATCH = Domain(
    {"home": "city", "guest": "city", "score": "0-9", "day": "day", "spectators": "900-9000"},
    heldout=(
        "On {day} the team of {home} met {guest} and scored {score} goals before {spectators} spectators.",
        "{spectators} spectators saw {home} get {score} points against {guest} on {day}.",
    ),
)
_TRAINING_ONLY = (
    Domain(
        {"patient": "person", "doctor": "person", "day": "day", "time": "time", "reason": "reason"},
        train=(
            "{patient} sees Dr. {doctor} on {day} at {time} because of {reason}.",
            "Dr. {doctor} expects {patient} at {time} on {day}. Reason of the visit: {reason}.",
            "Appointment moved: {patient}, {reason}, now {day} {time} with Dr. {doctor}.",
            "For {reason} we can offer {patient} a slot with Dr. {doctor}: {day}, {time}.",
        ),
    ),
    Domain(
        {"pet": "pet", "species": "species", "owner": "person", "weight": "1-60", "city": "city"},
        train=(
            "{owner} from {city} is looking for {pet}, a {species} of {weight} kg.",
            "{pet} the {species} weighs {weight} kilos and lives with {owner} in {city}.",
            "Found in {city}: a {species} named {pet}, about {weight} kg. Owner: {owner}.",
            "The vet in {city} weighed {pet}: {weight} kg. {owner} says that is much for a {species}.",
        ),
    ),
    Domain(
        {"invoice": "code", "company": "company", "amount": "10-9000", "due": "day"},
        train=(
            "Invoice {invoice} of {company} over {amount} dollars is due on {due}.",
            "{company} still waits for ${amount}. Please pay {invoice} by {due}.",
            "By {due} we must transfer {amount} euros to {company} (reference {invoice}).",
            "{amount} euros, payable to {company} until {due}, number {invoice}.",
        ),
    ),
    Domain(
        {
            "brand": "brand",
            "color": "color",
            "mileage": "900-190000",
            "price": "500-30000",
            "seller": "person",
        },
        train=(
            "{seller} sells a {color} {brand} with {mileage} km for {price} euros.",
            "For sale: {brand}, {color}, {mileage} miles on the clock, ${price}. Ask {seller}.",
            "The {color} {brand} of {seller} has run {mileage} km. Asking price {price}.",
            "{price} dollars for a {brand}! It is {color}, has done {mileage} miles and belongs to {seller}.",
        ),
    ),
    Domain(
        {"subject": "subject", "teacher": "person", "room": "1-400", "students": "4-60", "day": "day"},
        train=(
            "{teacher} teaches {subject} to {students} students every {day} in room {room}.",
            "Room {room} is taken on {day}: {subject} with {teacher}, {students} students.",
            "The {subject} class of {teacher} has {students} students and meets on {day}, room {room}.",
            "{students} people signed up for {subject}. First lesson: {day}, room {room}, by {teacher}.",
        ),
    ),
    Domain(
        {"sender": "person", "receiver": "person", "weight": "1-40", "city": "city", "code": "code"},
        train=(
            "Parcel {code} from {sender} to {receiver} in {city} weighs {weight} kg.",
            "{receiver}, {city}, gets a box of {weight} kg. Sender: {sender}. Tracking: {code}.",
            "{sender} sent {weight} kilos of books to {receiver}. Track it to {city} with {code}.",
            "With {code} you can follow what {sender} mailed: {weight} kg for {receiver} in {city}.",
        ),
    ),
    Domain(
        {
            "employee": "person",
            "department": "department",
            "salary": "20000-99000",
            "manager": "person",
            "start": "day",
        },
        train=(
            "{employee} joins {department} on {start} and reports to {manager}. Salary: {salary}.",
            "From {start} on {manager} leads {employee} in {department}, for {salary} dollars a year.",
            "{department} grows: {employee} begins on {start} with ${salary}; manager is {manager}.",
            "{manager} offered {employee} {salary} euros to work in {department} from {start}.",
        ),
    ),
    Domain(
        {"hotel": "hotel", "nights": "1-14", "visitors": "1-9", "city": "city", "rate": "40-400"},
        train=(
            "{visitors} visitors stay {nights} nights at {hotel} in {city} for {rate} euros a night.",
            "Booked: {hotel}, {city}, {nights} nights, {visitors} people, ${rate} each night.",
            "At {rate} dollars, {hotel} was the best that {city} had for {visitors} of us and {nights} nights.",
            "{city} for {nights} nights? {hotel} has a room for {visitors} at {rate}.",
        ),
    ),
    Domain(
        {"dish": "dish", "cook": "person", "servings": "2-12", "minutes": "10-180", "calories": "90-900"},
        train=(
            "{cook} makes {dish} for {servings} in {minutes} minutes; a plate has {calories} calories.",
            "The {dish} by {cook} takes {minutes} minutes, serves {servings} and has {calories} calories.",
            "{dish}: {servings} servings of {calories} calories, ready in {minutes} minutes. Recipe by {cook}.",
            "It took {cook} {minutes} minutes to cook {dish} for {servings} people, {calories} calories each.",
        ),
    ),
)
SEEN = {
    "person": _PERSON,
    "order": _ORDER,
    "event": _EVENT,
    "flight": _FLIGHT,
    "flat": _FLAT,
    "contact": _CONTACT,
}
UNSEEN = {"book": _BOOK, "match": _MATCH}
"""Kinds of text that training has none of: the keys are new too."""


def generate(split: Split, n: int, seed: int) -> list[Record]:
    """`n` requests with their right answers; the splits share no template, and of the values only numbers and weekdays.

    A fifth of the held-out requests is of kinds that training does not have.
    """
    rng = random.Random(f"{split} {seed}")
    return [_record(rng, split) for _ in range(n)]


def _domains(split: Split, unseen: bool) -> list[Domain]:
    if split == "train":
        return [*SEEN.values(), *_TRAINING_ONLY]
    return list((UNSEEN if unseen else SEEN).values())


def _record(rng: random.Random, split: Split) -> Record:
    unseen = split == "heldout" and rng.random() < 0.2
    domain = rng.choice(_domains(split, unseen))
    values = {key: _value(kind, rng, split) for key, kind in domain.keys.items()}
    text = rng.choice(domain.train if split == "train" else domain.heldout).format(**values)
    if rng.random() < 0.4:
        filler = rng.choice(_FILLERS[split])
        text = f"{filler} {text}" if filler.endswith(",") else f"{text} {filler}"
    wanted = rng.sample(list(values), rng.randint(2, min(4, len(values))))
    answer = json.dumps({key: values[key] for key in wanted}, ensure_ascii=False)
    return {
        "messages": [
            {"role": "user", "content": f"Extract {', '.join(wanted)} from this text.\n\n{text}"},
            {"role": "assistant", "content": answer},
        ],
        "check": {"part": "unseen keys" if unseen else "seen keys"},
    }


def score(record: Record, answer: str) -> bool:
    """Whether the first JSON object in the answer is the right one; `"48"` counts as 48, and case does not count."""
    start = answer.find("{")
    if start < 0:
        return False
    try:
        given, _ = json.JSONDecoder().raw_decode(answer[start:])
    except ValueError:
        return False
    return _plain(given) == _plain(json.loads(record["messages"][-1]["content"]))


def _plain(values: dict[str, Any]) -> dict[str, str]:
    return {key: str(value).strip().lower() for key, value in values.items()}
