#!/usr/bin/env python3
"""Makes prediction_comparison.csv beside this file: the input of the examples, in the shape of a real one.

    make_sample.py             write it
    make_sample.py --check     exit 1 if the file differs from what this program makes

One row per token: a question (token_type 0), the reasoning of a large model (1) and its answer (2). SLM_predictions is
what a small model says comes next; here that model is a table of which token followed which most often. The text is
made from the sentences below and a fixed seed, so the file is the same wherever it is made.
"""
import argparse
import pathlib
import random
import re
import sys
from collections import Counter, defaultdict

SAMPLES = 60
HERE = pathlib.Path(__file__).resolve().parent
SPECIAL = ["<eos>", "<user>", "<assistant>", "<think>", "</think>"]

NAMES = ["Mara", "Tom", "Ines", "Oskar", "Lena", "Yusuf", "Hana", "Piet"]
THINGS = ["apples", "letters", "stamps", "bricks", "lanterns", "tickets", "marbles", "candles", "seeds", "maps"]
PLACES = ["the market", "the harbour", "the old library", "the station", "the mill", "the garden"]
CHINESE_NAMES = ["小明", "小红", "王老师", "李奶奶", "阿强"]
CHINESE_THINGS = ["苹果", "铅笔", "邮票", "鸡蛋", "书", "橘子"]

QUESTIONS = [
    "{name} takes {a} {thing} to {place} and finds {b} more on the way. How many {thing} are there now?",
    "At {place} there are {a} boxes with {b} {thing} in each. How many {thing} is that?",
    "{name} had {a} {thing}, gave {b} of them to {other}, and lost none. How many are left?",
    "A path from {place} is {a} steps long. {name} walks it {b} times. How many steps are that?",
]
THOUGHTS = [
    "Okay, so the question is about {thing}, and it asks for one number.",
    "Let me read it again, slowly.",
    "We know that {name} starts with {a}, and {b} is the other number that matters.",
    "The place does not matter here; {place} is only part of the story.",
    "Wait, is anything taken away? I should check before I add.",
    "Suppose there were only {b} {thing}. Then the answer would be smaller, but the idea would be the same.",
    "One could write it as {a} + {b} = {sum}, or count on the fingers: both lead to {sum}.",
    "If each box holds {b}, then {a} boxes hold {a} × {b} = {product}.",
    "Hmm, \"more\" could mean two things, but the plain reading is the right one.",
    "Let me check: {sum} − {b} = {a}, which is what we began with. Good.",
    "{other} is mentioned as well, but {other} does not change the sum.",
    "I could also draw it: a row of {a} dots, and under it a row of {b} dots.",
    "The units are {thing}, so the answer has to be in {thing} too.",
    "In the morning the light over {place} is grey, and nobody counts anything; that is not the point.",
    "So far this gives {sum}. Does it make sense? It is larger than {a}, and it should be.",
    "Now, what if the order were turned round? {b} + {a} is {sum} again, since addition does not mind.",
    "Therefore the number I am looking for is {sum}, unless I have misread the first line.",
    "No, I have not misread it.",
]
CHINESE_THOUGHTS = [
    "先看题目：一共有{a}个{item}，后来又多了{b}个。",
    "让我再想一想，这里应该用加法，不是减法。",
    "{person}说得很清楚，所以{a}加{b}等于{sum}。",
    "等等，“多了”是什么意思？就是数量增加了。",
    "换一种方法验算：{sum}减去{b}，得到{a}，没有问题。",
    "题目里的地点和天气都不影响结果；只有数字才重要。",
    "如果每盒有{b}个{item}，那么{a}盒就有{product}个。",
    "因此，答案应该是{sum}。",
]
ANSWERS = [
    "There are {sum} {thing}.",
    "The answer is {sum}: {a} to begin with, and {b} more.",
    "Adding {a} and {b} gives {sum}, so {name} has {sum} {thing} in the end.",
    "It comes to {sum}.\n\nTo check, take {b} away from {sum}; {a} remains.",
]
CHINESE_QUESTIONS = ["{person}有{a}个{item}，又买了{b}个。现在一共有多少个{item}？", "{person}把{a}个{item}放在桌上，朋友又拿来{b}个。桌上有几个{item}？"]
CHINESE_ANSWERS = ["一共有{sum}个{item}。", "答案是{sum}：原来有{a}个，后来多了{b}个。"]


class Dice:
    """Only `random.random` promises the same numbers in every version of Python."""

    def __init__(self, seed):
        self.next = random.Random(seed).random

    def below(self, n):
        return int(self.next() * n)

    def pick(self, items):
        return items[self.below(len(items))]


def sample_texts(dice):
    """(question, reasoning, answer)"""
    a, b = 2 + dice.below(48), 2 + dice.below(30)
    words = {"name": dice.pick(NAMES), "other": dice.pick(NAMES), "thing": dice.pick(THINGS), "place": dice.pick(PLACES),
             "person": dice.pick(CHINESE_NAMES), "item": dice.pick(CHINESE_THINGS), "a": a, "b": b, "sum": a + b, "product": a * b}
    chinese = dice.next() < 0.25
    sentences = 4 + dice.below(int(6 + 40 * dice.next()))
    thoughts = []
    for _ in range(sentences):
        in_chinese = dice.next() < (0.8 if chinese else 0.06)
        thoughts.append(dice.pick(CHINESE_THOUGHTS if in_chinese else THOUGHTS))
        thoughts.append("" if in_chinese else "\n\n" if dice.next() < 0.2 else " ")
    fill = lambda text: text.format(**words)
    return (fill(dice.pick(CHINESE_QUESTIONS if chinese else QUESTIONS)), fill("".join(thoughts).strip()),
            fill(dice.pick(CHINESE_ANSWERS if chinese else ANSWERS)))


def tokenize(text):
    """A word with the space before it, a digit, a run of line ends, or one other character."""
    return re.findall(r" ?[A-Za-z]+|\n+|.", text)


def samples(dice):
    """(data_id, [(token, token_type)]), with gaps between the ids."""
    data_id = 0
    for number in range(SAMPLES):
        question, reasoning, answer = sample_texts(dice)
        tokens = [(token, 0) for token in ["<user>"] + tokenize(question) + ["<assistant>"]]
        if number == 23:  # a refusal: nothing was generated but the end, so it yields no result row
            tokens += [("<eos>", 2)]
        else:
            tokens += [(token, 1) for token in ["<think>", "\n"] + tokenize(reasoning) + ["\n", "</think>"]]
            tokens += [(token, 2) for token in ["\n\n"] + tokenize(answer) + ["<eos>"]]
        yield data_id, tokens
        data_id += 1 if dice.next() < 0.8 else 2 + dice.below(5)


def table():
    all_samples = list(samples(Dice(9)))
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    followers = defaultdict(Counter)
    for _, tokens in all_samples:
        ids = [vocabulary.setdefault(token, len(vocabulary)) for token, _ in tokens]
        for token, after in zip(ids, ids[1:]):
            followers[token][after] += 1
    guess = {token: min(after, key=lambda t: (-after[t], t)) for token, after in followers.items()}
    lines = ["row_id,data_id,token_id,token_type,real_token,SLM_predictions"]
    for data_id, tokens in all_samples:
        for token_id, (token, token_type) in enumerate(tokens):
            token = vocabulary[token]
            lines.append(f"{len(lines) - 1},{data_id},{token_id},{token_type},{token},{guess.get(token, 0)}")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check, path, content = parser.parse_args().check, HERE / "prediction_comparison.csv", table().encode()
    if not check:
        path.write_bytes(content)
    elif path.read_bytes() != content:
        sys.exit(f"{path} is not what make_sample.py makes; run it without --check")


if __name__ == "__main__":
    main()
