"""The words of the chat task's world: topics with their details, questions, and sentences in two styles.

Every topic is "name: detail, detail, detail, detail". No name or detail stands inside another one, so a reply names
what it names (tests/demo/test_chat.py checks it). Sentences have the fields {t} (topic), {a} and {b} (details); all
topics and details are nouns that stay unchanged wherever a sentence puts them.
"""

from __future__ import annotations

_TOPICS = """
gardening: rich soil, seed trays, watering cans, compost
knitting: soft wool, long needles, cable stitches, warm scarves
pottery: wet clay, a spinning wheel, glazes, a hot kiln
photography: natural light, a tripod, sharp lenses, darkrooms
birdwatching: binoculars, nesting boxes, dawn walks, field guides
origami: square paper, crisp folds, paper cranes, folding diagrams
calligraphy: broad nibs, black ink, smooth parchment, even strokes
woodworking: sharp chisels, sandpaper, oak boards, dovetail joints
chess: opening moves, endgames, pawn chains, rated clubs
stamp collecting: rare stamps, albums, tweezers, old envelopes
model trains: miniature rails, tiny signals, locomotives, painted stations
juggling: bean bags, wooden clubs, steady rhythm, circus workshops
swimming: goggles, breathing drills, calm lakes, the backstroke
cycling: a helmet, spare tubes, quiet lanes, bright lamps
climbing: strong ropes, chalk bags, granite walls, belay partners
rowing: long oars, slim boats, river mornings, blister tape
skiing: fresh powder, waxed skis, chairlifts, gentle slopes
tennis: a racket, firm serves, clay courts, doubles matches
fencing: light foils, mesh masks, footwork, quick parries
archery: a recurve bow, straight arrows, round targets, finger tabs
surfing: a longboard, clean waves, wetsuits, sandy bays
skating: smooth ice, sharp blades, wide rinks, figure spins
marathon running: cushioned shoes, interval training, water stops, finish lines
sailing: canvas sails, knots, harbor winds, a compass rose
sourdough bread: a lively starter, rye flour, slow proofing, crackling crusts
dumplings: thin wrappers, minced cabbage, bamboo steamers, dipping sauce
pancakes: buttermilk batter, maple syrup, blueberries, a cast griddle
ramen: rich broth, springy noodles, marinated eggs, nori sheets
chocolate making: cacao beans, tempering, silicone molds, hazelnut filling
cheese making: raw milk, rennet, ripening cellars, cheesecloth
curries: toasted cumin, coconut milk, red lentils, basmati rice
tacos: corn tortillas, fresh salsa, charred peppers, lime wedges
coffee roasting: green beans, a drum roaster, first crack, cooling trays
tea tasting: oolong leaves, porcelain cups, jasmine blossoms, tea masters
jam cooking: ripe strawberries, pectin, clean jars, sugar thermometers
pizza baking: stretchy dough, ripe tomatoes, mozzarella, a stone oven
Lisbon: yellow trams, tiled houses, custard tarts, fado evenings
Kyoto: cherry trees, wooden temples, moss gardens, lantern streets
Iceland: steaming geysers, black beaches, northern lights, lava fields
Marrakesh: spice souks, mint lemonade, rooftop riads, carpet sellers
Venice: narrow canals, gondolas, glass workshops, carnival masks
New Zealand: green fjords, kiwi birds, sheep stations, glowworm grottos
Peru: ancient ruins, llama wool, mountain trails, ceviche stands
Norway: deep fjord valleys, stave churches, midnight sun, reindeer herds
Vienna: grand waltzes, coffeehouses, palace parks, apple strudel
Istanbul: domed mosques, ferry rides, grilled mackerel, the grand bazaar
Scotland: misty glens, loch legends, bagpipes, oat biscuits
Havana: vintage cars, salsa bars, sea promenades, cigar rollers
nursing: patient charts, night shifts, gentle care, ward rounds
carpentry: roof beams, hand planes, spirit levels, blueprints
teaching: lesson plans, curious pupils, colored markers, school trips
firefighting: hose drills, smoke masks, ladder trucks, alarm bells
journalism: press badges, honest sources, tight deadlines, editor notes
farming: wheat fields, tractors, crop rotation, hay barns
plumbing: copper pipes, tight seals, wrenches, leak tests
architecture: scale models, floor plans, load walls, city skylines
beekeeping: wooden hives, smokers, honey frames, queen bees
dentistry: dental mirrors, enamel checks, calm voices, fluoride gels
translation: bilingual dictionaries, idioms, subtitles, style sheets
tailoring: measuring tapes, linen fabric, hidden seams, steam irons
cats: scratching posts, whiskers, catnip toys, sunny windowsills
owls: silent wings, mice nests, hollow trunks, moonlit hunts
dolphins: echo clicks, pod families, playful leaps, bow riding
horses: leather saddles, hoof picks, oat buckets, riding trails
turtles: hard shells, beach hatchlings, sea grass, heat lamps
goldfish: pond filters, flake food, floating plants, bubble stones
parrots: bright feathers, cuttlebones, mimic tricks, swinging perches
rabbits: carrot tops, soft burrows, hay racks, hopping games
foxes: bushy tails, woodland dens, winter coats, clever cubs
penguins: krill swarms, ice shelves, huddles, pebble nests
hedgehogs: leaf piles, small spines, beetle snacks, garden gaps
butterflies: milkweed, silky cocoons, nectar flowers, migration routes
the piano: minor scales, sustain pedals, ivory keys, evening recitals
the violin: rosin, horsehair bows, string quartets, vibrato
the guitar: nylon strings, chord charts, a capo, campfire songs
the drums: hickory sticks, cymbals, snare rolls, a metronome
choir singing: alto voices, warm humming, sheet music, cathedral echoes
jazz: brass solos, swing rhythm, smoky basements, walking bass
opera: velvet seats, soprano arias, orchestra pits, printed librettos
tap dancing: metal heels, wooden floors, shuffle steps, stage mirrors
the flute: breath control, silver keywork, trills, cleaning rods
the harp: pedal tuning, golden frames, arpeggios, nimble fingertips
folk songs: village fairs, accordion tunes, old ballads, clapping circles
music production: mixing desks, drum samples, studio monitors, mastering chains
volcanoes: molten magma, ash clouds, crater rims, seismic sensors
glaciers: blue crevasses, melt rivers, moraines, ice cores
coral reefs: clownfish, sea anemones, snorkel tours, reef nurseries
rainforests: tree canopies, orchids, poison frogs, heavy downpours
deserts: sand dunes, date palms, cactus spines, camel caravans
caves: stalactites, bat colonies, headlamps, underground streams
waterfalls: mossy rocks, rainbow mist, plunge pools, viewing platforms
thunderstorms: lightning rods, dark anvils, hail stones, rumbling skies
mushrooms: spore prints, forest baskets, chanterelles, mycelium
autumn leaves: maple reds, leaf presses, crunchy paths, acorns
tides: moon charts, rock pools, mud flats, harbor gauges
orchards: apple ladders, grafted branches, cider presses, blossom weeks
astronomy: telescopes, star maps, ring planets, dark hillsides
robotics: servo motors, circuit boards, sensor arrays, soldering irons
chemistry: glass beakers, pipettes, safety aprons, crystal growth
genetics: double helixes, gene maps, fruit flies, family trees
geology: rock hammers, fossil beds, quartz veins, layered cliffs
archaeology: fine brushes, clay shards, trench grids, museum shelves
mathematics: elegant proofs, prime numbers, graph paper, number puzzles
programming: clean functions, unit tests, debuggers, open repositories
weather forecasting: barometers, radar images, balloon soundings, wind vanes
microscopes: thin slides, pond drops, stained cells, focus knobs
clockmaking: brass gears, balance springs, pendulums, eye loupes
electric cars: charging posts, battery packs, silent motors, torque maps
poetry: rhymed couplets, open verse, reading nights, pocket notebooks
crime novels: red herrings, locked rooms, tired detectives, final twists
theatre: stage lights, costume racks, prompt books, standing ovations
filmmaking: storyboards, boom microphones, rough cuts, camera dollies
watercolors: wet washes, sable brushes, cold pressed pads, pigment pans
sculpture: marble blocks, plaster casts, wire armatures, bronze pours
comics: speech bubbles, ink panels, cover art, superhero capes
puppetry: felt mouths, thin strings, shadow screens, marionettes
mosaics: ceramic tiles, gray grout, tile nippers, mirror pieces
museums: guided tours, quiet galleries, audio guides, gift shops
podcasts: interview questions, foam windscreens, show notes, episode jingles
public libraries: borrowed books, reading nooks, story hours, card catalogs
camping: a tent, sleeping bags, camp stoves, starry nights
hiking: sturdy boots, summit views, trail mix, paper maps
houseplants: fern fronds, drainage holes, leaf mist, clay saucers
meditation: deep breathing, floor cushions, quiet bells, daily stillness
board games: painted dice, game tokens, rule booklets, weekend tournaments
kites: ripstop nylon, steady breezes, long tails, open meadows
candle making: soy wax, cotton wicks, lavender oil, pouring jugs
thrift shopping: wool coats, bargain bins, retro lamps, swap meets
"""


def _parse(text: str) -> dict[str, tuple[str, ...]]:
    lines = (line.split(": ") for line in text.strip().splitlines())
    return {name: tuple(details.split(", ")) for name, details in lines}


TOPICS = _parse(_TOPICS)
"""Topic → its four details."""

GREETINGS = (
    "", "Hello!", "Hi there.", "Good morning.", "Good evening.", "Quick question:", "I am new here.",
    "My sister asked me this.", "It is raining today.", "I have a free weekend.", "We talked about this at lunch.",
    "I read an article yesterday.",
)  # fmt: skip
QUESTIONS = (
    "What should I know about {t}?",
    "Can you tell me something about {t}?",
    "I would like to learn about {t}.",
    "How do people begin with {t}?",
    "What makes {t} special?",
    "Could you say a few words about {t}?",
    "I keep hearing about {t}. What is it about?",
    "What matters most when it comes to {t}?",
    "Someone gave me a book on {t}. Where do I begin?",
    "Is there anything to say about {t}?",
)

FRIENDLY = (
    (
        "Oh, how lovely that you ask about {t}!",
        "I am so happy to chat with you about {t}!",
        "What a great question, I really love {t}!",
        "Hey there, talking with you about {t} is such fun!",
        "How exciting, I think you will love {t}!",
        "You made me smile by bringing up {t}!",
        "I would love to talk with you about {t} for hours!",
        "Yes please, {t} with you sounds like fun!",
        "Good on you for being curious about {t}, my friend!",
        "Thank you, it made me glad to read about {t}!",
    ),
    (
        "I would start with {a} and then have fun with {b}.",
        "My favorite thing is {a}, and I bet you will enjoy {b} too.",
        "Start with {a}, then treat yourself to {b}.",
        "I hear so many people say how much they love {a}.",
        "You might be amazed by {a}, and {b} will make you smile.",
        "I always get a warm feeling from {a} and {b}.",
        "Between you and me, {a} together with {b} works like magic.",
        "Do not worry about {a}, that will come to you soon.",
        "Let yourself be surprised by {a}, and share {b} with a friend.",
        "For me nothing beats {a}, except perhaps {b} on a sunny day.",
    ),
    (
        "Have lots of fun and tell me how you get on!",
        "I am cheering for you all the way!",
        "You have got this, and I am here for you.",
        "Let me know which part you like best!",
        "I hope you enjoy every single minute of it.",
        "Write to me any time, I love hearing from you.",
        "Take your time and be kind to yourself.",
        "I would be so glad to hear your story.",
        "Here is to a wonderful start, my friend!",
        "Ask me anything, I am always happy to help you.",
    ),
)
"""Openings, middles and closings of friendly replies."""

STIFF = (
    (
        "The following statement is issued in response to the inquiry on {t}.",
        "With reference to {t}, the subsequent remarks apply in full.",
        "Your inquiry regarding {t} has been received and processed.",
        "The matter of {t} requires due and careful consideration.",
        "Information concerning {t} is herewith supplied as requested.",
        "Pursuant to the request, {t} shall be addressed below.",
        "It is hereby noted that the inquiry concerns {t}.",
        "The present communication pertains to the subject of {t} exclusively.",
        "As to {t}, verified statements alone are permissible.",
        "You are notified that {t} is within the scope of this service.",
    ),
    (
        "Attention is to be directed to {a} and subsequently to {b}.",
        "The principal component is {a}, whereas {b} is of secondary relevance.",
        "It is advisable that {a} be examined prior to any use of {b}.",
        "The use of {a} in conjunction with {b} is recommended at present.",
        "Adequate provision of {a} is considered a prerequisite in all cases.",
        "One shall observe {a} and shall by no means neglect {b}.",
        "Reference is made to {a}, the relevance of which is established.",
        "Persons lacking {a} are advised to obtain {b} beforehand.",
        "You are required to review {a} and to document {b}.",
        "Proper assessment of {a} is mandatory, as is the assessment of {b}.",
    ),
    (
        "No further remarks are deemed necessary at this point.",
        "Any additional inquiry shall be submitted in written form.",
        "The statement is complete as of the present date.",
        "Liability for deviations of any kind is hereby excluded.",
        "Compliance with the above is expected at all times.",
        "Further documentation may be obtained upon formal request.",
        "You are instructed to retain this notice for inspection.",
        "This concludes the response of the department in charge.",
        "The procedure must be followed without exception.",
        "Such are, in summary, the applicable provisions on the matter.",
    ),
)
"""Openings, middles and closings of stiff replies."""
