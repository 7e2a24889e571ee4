"""The built-in common-sense questions: sentences to finish, written for preftune. Always the same rows."""

from __future__ import annotations

import random
from functools import cache

from preftune.data.sources import Row

SEED = "preftune/choices/1"

ITEMS = """\
If you leave ice cream in the sun, it|melts.|freezes.|grows.|sings.
To cut a sheet of paper, you need|a pair of scissors.|a pillow.|a bucket of water.|a spoon.
When it rains, people on the street open|their umbrellas.|their fridges.|their suitcases.|their tins.
A fish lives in|the water.|a nest.|a drawer.|the oven.
After you have washed your hands, you dry them with|a towel.|a stone.|some soup.|a candle.
If you drop a glass on a stone floor, it|breaks.|boils.|wakes up.|gets longer.
At night it is dark outside because|the sun has set.|the grass is green.|people are asleep.|doors are closed.
To see what time it is, you look at|a clock.|a shoe.|a sponge.|a loaf of bread.
Bread is made from|flour.|sand.|wool.|paint.
You can warm your hands at|a fire.|a fridge.|a mirror.|an ice cube.
A letter is put into|an envelope.|a kettle.|a tyre.|a sock.
If you water a plant every day, it will|grow.|turn to glass.|run away.|rust.
To reach a high shelf, you can stand on|a ladder.|a sheet of paper.|a puddle.|a feather.
Birds build nests to|lay their eggs in.|keep their money in.|drive to work.|cook soup in.
When the traffic light is red, drivers|stop.|go faster.|fall asleep.|get out and dance.
You put milk into the fridge so that it|stays fresh.|gets hot.|turns blue.|becomes bread.
A baby who is hungry will most likely|cry.|read the news.|go shopping.|fry an egg.
To hang a picture on the wall, you use a nail and|a hammer.|a fork.|a scarf.|a glass of milk.
If you want to sleep, you go to|bed.|the bank.|the car wash.|the fountain.
Snow falls in|winter.|the bathtub.|a dictionary.|the soup.
A person who breaks a leg should see|a doctor.|a baker.|a pilot.|a gardener.
You wear gloves to keep your|hands warm.|teeth clean.|ears closed.|knees dry.
To boil an egg, you first heat some|water.|paper.|sand.|wood shavings.
A bicycle has two|wheels.|kitchens.|wings.|tails.
If the battery of a phone is empty, you|charge it.|water it.|fold it.|feed it grass.
Before you cross a street, you should|look both ways.|close your eyes.|count your money.|take off your shoes.
A cow gives|milk.|honey.|coffee.|petrol.
When a shop is closed, you can't|buy anything there.|walk past it.|remember its name.|see its windows.
To send a parcel abroad, you take it to|the post office.|the swimming pool.|the cinema.|the forest.
A sponge is useful because it|soaks up water.|plays music.|shines at night.|flies.
If you eat too much cake, you may get|a stomach ache.|a new bicycle.|a letter.|a haircut.
The library is a place where you can|borrow books.|wash your car.|milk cows.|catch fish.
To keep flies out in summer, people put a net over|the window.|the lake.|the moon.|the street.
After a long run, most people are|thirsty.|invisible.|older than their parents.|made of wood.
If you mix red and white paint, you get|pink.|black.|a sound.|a triangle.
You lock the door of your house to|keep thieves out.|make it warmer.|please the cat.|grow tomatoes.
A candle goes out when you|blow on it.|look at it.|talk about it.|pay for it.
In the morning, the sun rises in|the east.|the west.|the cellar.|the south pole.
Somebody who can't see well may need|glasses.|a drum.|a raincoat.|a shovel.
To eat soup, it is best to use|a spoon.|a needle.|a comb.|a rope.
If a tyre is flat, it needs|air.|salt.|sugar.|a nap.
The opposite of an empty bottle is one that is|full.|green.|expensive.|French.
When you are lost in a city, it helps to have|a map.|a pillow.|an onion.|a violin.
Clothes that have been washed are hung up to|dry.|get dirty.|shout.|melt.
A dentist takes care of|teeth.|shoes.|roofs.|horses.
If you heat butter in a pan, it becomes|liquid.|a stone.|a newspaper.|louder.
To open a tin of beans, you use|a tin opener.|a paintbrush.|a blanket.|a whistle.
Hens lay|eggs.|carpets.|potatoes.|bricks.
When somebody sneezes, it is polite to|offer a handkerchief.|throw a snowball.|switch off the light.|sell the house.
A tree loses its leaves in|autumn.|an hour.|the shower.|a lift.
You can't drink seawater because it is|too salty.|too loud.|too square.|too young.
If you pull a cat's tail, it will probably|scratch you.|make you coffee.|thank you.|turn into a dog.
A suitcase is used for|travelling.|cooking.|swimming.|measuring time.
To put out a small fire, you can use|a blanket.|dry straw.|petrol.|paper.
A house without windows would be|dark inside.|full of sunlight.|easy to see into.|made of water.
If you plant an apple seed, after years you may get|an apple tree.|a banana.|a chair.|a fish.
People whisper when they want|not to be heard.|to be heard from afar.|to frighten birds.|to warm a room.
The heaviest of these is|an elephant.|a mouse.|a teacup.|a butterfly.
The fastest way from one continent to another is|a plane.|a wheelbarrow.|a pair of skates.|a snail.
If your shoes are too small, your feet|hurt.|sing.|get invisible.|can fly.
A mirror shows you|yourself.|tomorrow's weather.|the past.|your neighbour's kitchen.
To know how warm it is, you look at|a thermometer.|a ruler.|a scale.|a calendar.
Before you paint a wall, you cover the floor so that it|stays clean.|gets wet.|grows.|hears nothing.
A knife that is blunt should be|sharpened.|watered.|painted red.|put to bed.
If the power fails in the evening, people light|candles.|fridges.|carpets.|spoons.
The brother of your mother is your|uncle.|grandfather.|nephew.|sister.
A week has|seven days.|four days.|thirty days.|one hour.
If today is Monday, tomorrow is|Tuesday.|Sunday.|Friday.|Saturday.
A firefighter's job is to|put out fires.|bake cakes.|cut hair.|sell tickets.
You stir your coffee after adding sugar so that it|dissolves.|freezes.|leaves.|turns into tea.
A boat with a hole in it will|sink.|fly.|sing.|go faster.
To weigh apples, the grocer uses|scales.|a clock.|a broom.|a telephone.
When water gets very cold, it turns into|ice.|steam.|sand.|wood.
Someone who tells a lie says|what is not true.|what everybody knows.|nothing at all.|the right time.
If you throw a ball up, it|comes down again.|stays there.|turns into a bird.|gets wet at once.
You should not touch a hot stove because you could|burn yourself.|get cold.|fall asleep.|win a prize.
A blind person may be led by|a dog.|a goldfish.|a lamp.|a picture.
A pencil is sharpened when its point is|blunt.|too long.|blue.|asleep.
The roof of a house keeps out|the rain.|the floor.|the family.|the stairs.
When a guest arrives, the host|opens the door.|hides the chairs.|leaves by the window.|goes to sleep.
An hour is longer than|a minute.|a day.|a week.|a year.
Before eating an orange, you|peel it.|iron it.|read it.|plant it.
In the desert there is little|water.|sand.|sunshine.|heat.
A driver who is very tired should|take a break.|drive faster.|close one eye.|turn off the lights.
You carry an umbrella when the sky is|full of dark clouds.|clear and blue.|below you.|full of stars.
The school year ends, so the pupils go on|holiday.|fire.|sale.|strike forever.
A key that is bent will not|turn in the lock.|shine.|fall down.|have a colour.
If you forget to set the alarm, you may|be late.|be early.|lose your shoes.|find a treasure.
To clean a dusty shelf, you take|a cloth.|a cake.|a stone.|a match.
A plant on a dark cellar shelf will|wither.|bloom at once.|sing.|answer the phone.
The pupil raised her hand because she|knew the answer.|was not there.|had no hands.|hated the ceiling.
The baker gets up early because|people want fresh bread.|the moon is made of dough.|ovens sleep late.|shops never open.
He put on a coat because it was|cold outside.|hot outside.|his birthday yesterday.|made of soup.
She whispered because the baby was|asleep.|a musician.|on the roof.|made of paper.
The bus was full, so we had to|stand.|lie on the roof.|sing the timetable.|drive it ourselves.
They moved the piano with four men because it was|heavy.|light.|empty.|a secret.
The soup tasted of nothing, so she added|some salt.|a spoon.|a button.|more plates.
The milk smelled sour, so he|poured it away.|drank it all.|gave it to the baby.|put it into a vase.
The lamp did not shine, so he changed|the bulb.|the weather.|the carpet.|his name.
The path was icy, so the old man walked|slowly.|on his hands.|faster than ever.|through the ceiling.
"""
"""A beginning, its right ending, and wrong ones."""


@cache
def own_choices() -> tuple[Row, ...]:
    """The rows, with `where` as `builtin:choices[N]`; the right ending stands at any place."""
    rng = random.Random(SEED)
    rows: list[Row] = []
    for number, line in enumerate(ITEMS.splitlines()):
        prompt, right, *wrong = line.split("|")
        choices = rng.sample([right, *wrong], 1 + len(wrong))
        values = {"prompt": prompt, "choices": choices, "answer": choices.index(right)}
        rows.append(Row(f"builtin:choices[{number}]", values))
    return tuple(rows)
