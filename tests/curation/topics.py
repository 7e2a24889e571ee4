"""Texts about planted topics in three languages: each topic's own words among common ones, in any order.

There are no fixed phrasings: a few templates repeated would be the strongest clusters of all, and rightly so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

COMMON = {
    "en": "the a of to is how what why and in for do I can you my with it on are please explain that should this when "
    "not be more about does from best tell me way between make some which have if any or",
    "ru": "как что и в на почему не для это с или можно ли мне о по есть расскажи какой чем если нужно из объясни быть "
    "лучше все при когда у за так то мой где бы ещё а же очень",
    "zh": "的 是 什么 怎么 为什么 在 和 请 有 我 如何 了 吗 不 这 可以 应该 一个 好 说 对 哪些 会 更 解释",
}
WORDS = {
    (
        "cats",
        "en",
    ): "cat cats kitten kittens purring whiskers litter tabby fur scratching meowing siamese tomcat catnip "
    "hairball claws feline paws neutered pet",
    ("logic", "en"): "syllogism modus ponens truth fallacy predicate quantifier contradiction proposition deduction "
    "implication valid argument premises axiom theorem proof negation conjunction inference",
    (
        "baking",
        "en",
    ): "sourdough bread yeast kneading dough oven flour rye crust baking croissant proofing batter pastry "
    "loaf crumb butter starter rolls cake",
    (
        "football",
        "en",
    ): "penalty goalkeeper offside midfield league striker coach referee pitch football stoppage corner "
    "kick defender fans final stadium goal team transfer",
    (
        "databases",
        "en",
    ): "sql query index table foreign key transaction postgresql join deadlock schema migration replica "
    "column rows database lock rollback view trigger",
    ("stars", "en"): "star galaxy telescope supernova neutron redshift exoplanet dwarf orbit nebula cosmic comet "
    "spectrum gravity planet corona astronomer light-year black hole",
    ("cats", "ru"): "кошка кошки кошку кот кота котёнок котята мурлычет усы лоток корм шерсть когтеточка сиамская "
    "лапы когти мяукает кошачий питомец хвост",
    ("tea", "ru"): "чай чая заварка чайник улун пуэр заваривать заварить чайный листья чашка чашку бергамот зелёный "
    "чёрный кипяток церемония аромат настаивать мята сбор",
    ("law", "ru"): "договор договора суд суда иск исковое арбитражный наследство пошлина кодекс статья адвокат жалоба "
    "право собственность приказ нотариус ответчик истец закон",
    ("garden", "ru"): "рассада томаты томатов огурцы полив поливать теплица компост грядка грядки яблоня обрезка "
    "удобрение почва посев морковь клубника сорняки мульча семена",
    ("tea", "zh"): "绿茶 红茶 泡茶 水温 乌龙茶 茶壶 普洱 茶叶 茶道 白茶 茶杯 龙井 茶园 冲泡",
    ("chess", "zh"): "国际象棋 开局 易位 皇后 残局 将军 棋手 棋盘 兵 升变 比赛 车 马 象",
}
TOPICS = tuple(WORDS)


def text(topic: tuple[str, str], rng: random.Random) -> str:
    """One text about a topic: 4 to 6 of its words among 4 to 8 common ones, the common ones by Zipf's law."""
    common = COMMON[topic[1]].split()
    words = rng.sample(WORDS[topic].split(), rng.randint(4, 6))
    words += rng.choices(common, [1 / (place + 2) for place in range(len(common))], k=rng.randint(4, 8))
    rng.shuffle(words)
    return ("" if topic[1] == "zh" else " ").join(words) + ("？" if topic[1] == "zh" else "?")


def planted(sizes: Sequence[tuple[tuple[str, str], int]], seed: int = 0) -> tuple[list[str], list[int]]:
    """Shuffled texts, and the number of each one's topic."""
    rng = random.Random(seed)
    rows = [(text(topic, rng), number) for number, (topic, size) in enumerate(sizes) for _ in range(size)]
    rng.shuffle(rows)
    return [one for one, _ in rows], [number for _, number in rows]
