"""Makes tests/goldens/tokenizer/ from the tokenizers library (0.22.2), which is the oracle.

    python make_tokenizer_goldens.py            writes the files

  llama.json          a small tokenizer in the form of Llama 3's: merges as "a b", ignore_merges, special tokens
  flags.json          a smaller one: merges as ["a", "b"], no ignore_merges, added tokens with every flag
  strings.jsonl       a line each: ["text", id, id, ...] by llama.json, special tokens parsed, none added
  flags.jsonl         a line each: ["text", [ids by flags.json], [ids with encode_special_tokens]]
  decode.jsonl        a line each: [[ids of llama.json], "text", "text without special tokens"]
  char_classes.txt    "first last class", hexadecimal: what the pattern takes every code point for (L, N, S; the rest is
                      neither), then "first last W": what the library's single_word flag takes for word characters
"""
import json
import os
import random
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>", "<|reserved_special_token_2|>", "<|reserved_special_token_10|>", "<|image|>",
]

# Sentences written for this purpose, in twenty-four scripts.
SENTENCES = {
    "Latin": [
        "The picture shows a small red boat on a quiet lake, and two children who wave at it from the shore.",
        "If you don't know what it's for, they'll tell you; we've asked, I'm sure he'd say the same, and you're right.",
        "How many blue squares are there? There are 12 of them, 3 more than the 9 circles counted on 24/11/2026.",
        "Der Bäcker öffnet früh am Morgen, damit die Straße nach frischem Brot duftet; groß ist die Freude.",
        "Où se trouve la bibliothèque ? C'est l'été, et les garçons rêvent déjà de Noël à l'île d'Oléron.",
        "El niño pequeño comió una piña; ¿dónde está mañana el señor Núñez? ¡Aquí, por supuesto!",
        "Žluťoučký kůň úpěl ďábelské ódy, zatímco děti pily čaj a jedly švestky.",
        "Trời hôm nay đẹp quá, chúng ta cùng đi dạo quanh hồ rồi uống một ly cà phê sữa đá nhé.",
        "İstanbul'da ışıklar yanınca şehir bambaşka görünür; çocuklar ağaçların altında oynuyor.",
        "def area(w, h):\n    return w * h  # square pixels\n\nprint(area(560, 560))\n",
        "{\"role\": \"user\", \"content\": [{\"type\": \"image\"}, {\"type\": \"text\", \"text\": \"Describe it.\"}]}",
    ],
    "Greek": [
        "Η εικόνα δείχνει μια μικρή βάρκα στη θάλασσα και δύο παιδιά που παίζουν στην αμμουδιά.",
        "Πόσα μήλα βλέπεις στο τραπέζι; Βλέπω πέντε κόκκινα μήλα και ένα πράσινο.",
    ],
    "Cyrillic": [
        "На картинке изображена маленькая лодка, которая плывёт по тихому озеру ранним утром.",
        "Сколько яблок лежит на столе? Там лежит семь яблок, а рядом стоит стакан воды.",
        "Їжачок знайшов у лісі гриб і поніс його додому, бо вже наближалася зима.",
    ],
    "Armenian": ["Նկարում երևում է փոքրիկ նավակ, որը դանդաղ լողում է լճի կապույտ ջրերի վրայով։"],
    "Georgian": ["სურათზე ჩანს პატარა ნავი, რომელიც მშვიდ ტბაზე მიცურავს დილის მზის შუქზე."],
    "Hebrew": ["בתמונה רואים סירה קטנה על אגם שקט, ושני ילדים מנופפים לה מן החוף.", "כַּמָּה תַּפּוּחִים יֵשׁ עַל הַשֻּׁלְחָן?"],
    "Arabic": [
        "تظهر في الصورة سفينة صغيرة على بحيرة هادئة، وطفلان يلوحان لها من الشاطئ.",
        "كم تفاحة على الطاولة؟ هناك ٧ تفاحات حمراء و٣ خضراء.",
        "در این تصویر یک قایق کوچک روی دریاچه‌ای آرام دیده می‌شود.",
    ],
    "Devanagari": ["चित्र में एक छोटी नाव शांत झील पर तैर रही है और दो बच्चे किनारे से हाथ हिला रहे हैं।", "मेज़ पर कितने सेब हैं? वहाँ ५ लाल सेब हैं।"],
    "Bengali": ["ছবিতে একটি ছোট নৌকা শান্ত হ্রদের উপর ভাসছে আর দুটি শিশু তীর থেকে হাত নাড়ছে।"],
    "Gurmukhi": ["ਤਸਵੀਰ ਵਿੱਚ ਇੱਕ ਛੋਟੀ ਕਿਸ਼ਤੀ ਸ਼ਾਂਤ ਝੀਲ ਉੱਤੇ ਤੈਰ ਰਹੀ ਹੈ।"],
    "Gujarati": ["ચિત્રમાં એક નાની હોડી શાંત તળાવ પર તરી રહી છે અને બે બાળકો કિનારે ઊભા છે."],
    "Tamil": ["படத்தில் ஒரு சிறிய படகு அமைதியான ஏரியில் மிதக்கிறது; இரண்டு குழந்தைகள் கரையில் நிற்கிறார்கள்."],
    "Telugu": ["చిత్రంలో ఒక చిన్న పడవ ప్రశాంతమైన సరస్సుపై తేలుతోంది, ఇద్దరు పిల్లలు ఒడ్డున ఉన్నారు."],
    "Kannada": ["ಚಿತ್ರದಲ್ಲಿ ಒಂದು ಸಣ್ಣ ದೋಣಿ ಶಾಂತವಾದ ಸರೋವರದ ಮೇಲೆ ತೇಲುತ್ತಿದೆ."],
    "Malayalam": ["ചിത്രത്തിൽ ഒരു ചെറിയ വള്ളം ശാന്തമായ തടാകത്തിൽ ഒഴുകുന്നു."],
    "Sinhala": ["පින්තූරයේ කුඩා ඔරුවක් නිසල විලක් මත පාවෙමින් තිබේ."],
    "Thai": ["ในภาพมีเรือลำเล็กลอยอยู่บนทะเลสาบที่เงียบสงบ และมีเด็กสองคนโบกมือจากฝั่ง", "บนโต๊ะมีแอปเปิลสีแดง ๕ ลูก"],
    "Lao": ["ໃນຮູບມີເຮືອນ້ອຍລຳໜຶ່ງລອຍຢູ່ໃນທະເລສາບທີ່ງຽບສະຫງົບ."],
    "Khmer": ["ក្នុងរូបភាពមានទូកតូចមួយអណ្ដែតលើបឹងដ៏ស្ងប់ស្ងាត់។"],
    "Myanmar": ["ပုံထဲတွင် လှေငယ်တစ်စင်းသည် တိတ်ဆိတ်သော ရေကန်ပေါ်တွင် မျောနေသည်။"],
    "Tibetan": ["པར་ནང་ལ་གྲུ་ཆུང་ཆུང་ཞིག་མཚོའི་སྟེང་ན་འཁོར་བཞིན་འདུག"],
    "Ethiopic": ["በሥዕሉ ላይ አንዲት ትንሽ ጀልባ በጸጥታ ሐይቅ ላይ ትንሳፈፋለች።"],
    "Hangul": ["그림에는 작은 배 한 척이 조용한 호수 위에 떠 있고, 두 아이가 물가에서 손을 흔들고 있습니다.", "탁자 위에 사과가 몇 개 있나요? 빨간 사과가 다섯 개 있어요."],
    "Japanese": ["この写真には、静かな湖に浮かぶ小さな船と、岸辺で手を振る二人の子どもが写っています。", "テーブルの上にリンゴはいくつありますか？赤いリンゴが５つあります。"],
    "Han": ["图片上有一只小船漂在平静的湖面上，两个孩子在岸边向它挥手。", "桌子上有幾個蘋果？一共有五個紅蘋果，還有兩個綠的。"],
    "Canadian Aboriginal": ["ᐊᑎᒃ ᐅᓪᓗᒥ ᓯᓚ ᓂᒡᓚᓱᒃᑐᖅ ᐊᒻᒪ ᐊᓄᕆᖃᙱᑦᑐᖅ."],
}

CONTRACTIONS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'rE", "'Re", "'ve", "'VE", "'vE", "'m", "'M", "'ll", "'LL", "'lL", "'d",
                "'D", "'\u017f", "\u2019s", "\u02bcs", "'r", "'v", "'l", "'R", "'x", "''s", "'ss", "'lll", "'\u017fs", "' s", "'\ns",
                "\u017f", "'K", "'\u212a", "'\u0130", "'ﬆ", "'é"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", " \n", "\n ", " \t ", "\u00a0", "\u3000", "\u2003", "\u2028", "\u2029", "\u0085",
          "\u200b", "\u000b", "\f", " \r", "\u1680", "\u202f", "\u205f", "\ufeff", "\u180e"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵🇰🇷", "1️⃣", "❤️", "☀", "🧑🏿‍🚀", "🫠", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "♀️", "©️"]
MARKS = ["e\u0301", "n\u0303", "\u0301", "a\u0308\u0323", "Z̶̗̈́a̵͓͝l̷̨̾g̶͕̚ȍ̵͍", "\u200d", "\ufe0f", "क्षि", "น้ำ", "ﷺ", "\u0e33"]
DIGITS = ["0", "7", "42", "123", "1234", "1234567", "3.14159", "1,000,000", "٠١٢٣", "۴۵۶", "०१२", "๑๒๓๔", "①②③④", "Ⅷ", "½", "²³", "৪৫", "１２３", "𝟙𝟚", "一二三",
          "0x1F", "1e-5", "10:45", "𐒠", "𞥐"]
SYMBOLS = ["!", "...", "?!", "-->", "==", "//", "$", "€5", "#", "@user", "%", "(", ")", "[]", "{}", "<|", "|>", "<", ">", "_", "__init__", "\\n", "\\", "\"", "'", "''",
           "`", "```", "—", "…", "「", "」", "，", "。", "·", "•", "→", "∑", "≤", "¬", "+", "*", "**", "~", "^", "&amp;", "https://example.org/a?b=c#d", "a_b", "C++", "\x00",
           "\x01", "\x1b[0m", "\x7f", "\u00ad", "\ufffd", "\ufffe", "\U0010ffff", "\ue000"]
# Letters, digits and marks that came with Unicode 15.0 to 16.0, and code points assigned only later.
RECENT = [(0x1C89, 0x1C8A), (0xA7CB, 0xA7CF), (0xA7DA, 0xA7DD), (0x10D40, 0x10D85), (0x11380, 0x113E2), (0x116D0, 0x116E3), (0x11F00, 0x11F59),
          (0x13430, 0x13460), (0x16100, 0x16139), (0x16D40, 0x16D79), (0x1CCF0, 0x1CCF9), (0x1D2C0, 0x1D2D3), (0x1E4D0, 0x1E4F9), (0x1E5D0, 0x1E5FA),
          (0x2EBF0, 0x2EBFF), (0x31350, 0x31360), (0x323B0, 0x323B8), (0x10940, 0x10950), (0x16EA0, 0x16EB0), (0x1E6C0, 0x1E6D0), (0x88F, 0x88F), (0xC5C, 0xC5C)]

POOLS = {}
for code in range(0x110000):
    if not 0xD800 <= code < 0xE000:
        POOLS.setdefault(unicodedata.category(chr(code)), []).append(code)
CATEGORIES = sorted(POOLS)


def random_char(rng):
    if rng.random() < 0.1:
        return chr(rng.randint(*rng.choice(RECENT)))
    pool = POOLS[rng.choice(CATEGORIES)]
    # Half from the lowest part of the category: those are the characters texts have.
    return chr(pool[rng.randrange(min(200, len(pool)))] if rng.random() < 0.5 else rng.choice(pool))


def words(rng, script=None):
    """A stretch of a sentence, of words or of characters."""
    sentence = rng.choice(SENTENCES[script or rng.choice(list(SENTENCES))])
    if rng.random() < 0.5:
        parts = sentence.split(" ")
        start = rng.randrange(len(parts))
        return " ".join(parts[start:start + rng.randint(1, 4)])
    start = rng.randrange(len(sentence))
    return sentence[start:start + rng.randint(1, 14)]


def special(rng, names):
    """A special token, sometimes broken: cut short, overlapping another, in another case."""
    name = rng.choice(names)
    return rng.choice([name] * 6 + [name + rng.choice(names), name[:rng.randint(1, len(name))], name[rng.randrange(len(name)):],
                                    name[:-1] + rng.choice(names), name.upper(), "<" + name, name + ">", " " + name + " ", name[:3] + name])


def text(rng, names):
    """One test string: a few pieces of random kinds."""
    kinds = [lambda: words(rng), lambda: words(rng), lambda: words(rng, "Latin"), lambda: rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 7]),
             lambda: rng.choice(CONTRACTIONS), lambda: rng.choice(EMOJI), lambda: rng.choice(MARKS), lambda: rng.choice(DIGITS),
             lambda: rng.choice(SYMBOLS), lambda: "".join(random_char(rng) for _ in range(rng.randint(1, 3))), lambda: special(rng, names),
             lambda: rng.choice(["a", "A", "I", "you", "they", "It", "don", "été", "x", "1"]) + rng.choice(CONTRACTIONS)]
    count = rng.choice([1, 1, 2, 2, 3, 3, 4])
    return "".join(rng.choice(kinds)() for _ in range(count))


def strings(count, seed, names):
    """`count` different strings: first each sentence of each script, then random ones."""
    rng = random.Random(seed)
    seen = dict.fromkeys([""] + [s for sentences in SENTENCES.values() for s in sentences])
    while len(seen) < count:
        seen[text(rng, names)] = None
    return list(seen)[:count]


def base_tokenizer(vocab_size, ignore_merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    corpus = [s for sentences in SENTENCES.values() for s in sentences] + ["\n\n", "    ", "        ", "\t\t", " \n", "...", "123", "2026"]
    tokenizer.train_from_iterator(corpus * 2, trainer)
    return tokenizer


def llama_tokenizer():
    """The published form: special tokens behind the vocabulary, a template that adds the first of them."""
    tokenizer = base_tokenizer(2400, True)
    first = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                             special_tokens=[("<|begin_of_text|>", first)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    data = json.loads(tokenizer.to_str())
    # Two tokens that no merge makes, but which ignore_merges takes when a piece is just that: print and تظهر.
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"] if "".join(pair) not in ("print", "ØªØ¸ÙĩØ±")]
    return data


FLAGGED = [
    AddedToken("<sep>", special=True, normalized=False), AddedToken("<sep><sep>", special=True, normalized=False),
    AddedToken("<left>", lstrip=True, special=True, normalized=False), AddedToken("<right>", rstrip=True, special=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True, special=False, normalized=False), AddedToken("boat", single_word=True, special=False, normalized=False),
    AddedToken("lake", single_word=True, lstrip=True, special=False, normalized=True), AddedToken("<norm>", special=True, normalized=True),
    AddedToken("norm", special=False, normalized=True), AddedToken("\n\n", special=False, normalized=False), AddedToken("é", special=False, normalized=False),
    AddedToken("two words", special=False, normalized=True), AddedToken("湖", single_word=True, special=False, normalized=True),
    AddedToken("<se", special=False, normalized=False), AddedToken(" x", special=False, normalized=False), AddedToken("Ġy", special=False, normalized=False),
]


def flags_tokenizer():
    tokenizer = base_tokenizer(700, False)
    tokenizer.add_tokens(FLAGGED)
    return json.loads(tokenizer.to_str())


def flag_strings(count, seed):
    rng = random.Random(seed)
    names = [t.content for t in FLAGGED]
    around = [" ", "  ", "\n", "\t ", "", "", "a", "_", "-", "é", "\u200d", "\u0301", "Ⓐ", "½", "Ⅷ", "٣", "\u3000", "\u0085", ".", "<", "湖", "𞥐", "\u1c89", "🅰", "boat", "x", "y"]
    seen = {}
    while len(seen) < count:
        pieces = [rng.choice(names) if rng.random() < 0.5 else rng.choice(around) if rng.random() < 0.8 else text(rng, names) for _ in range(rng.randint(1, 6))]
        seen["".join(pieces)] = None
    return list(seen)


def id_lists(tokenizer, count, seed):
    """Lists of ids to decode: as texts give them, cut anywhere, and at random."""
    rng = random.Random(seed)
    size = tokenizer.get_vocab_size()
    for sample in strings(count, seed, SPECIAL):
        ids = tokenizer.encode(sample, add_special_tokens=False).ids
        start = rng.randrange(len(ids) + 1)
        yield rng.choice([ids, ids[start:], ids[:start], [rng.randrange(256) for _ in range(rng.randint(1, 12))],
                          [rng.randrange(size) for _ in range(rng.randint(1, 8))]])


def runs(members):
    """Consecutive code points as (first, last)."""
    out = []
    for code in members:
        if out and out[-1][1] == code - 1:
            out[-1][1] = code
        else:
            out.append([code, code])
    return out


def char_classes():
    """Asks the library about every code point, by where it splits."""
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    whole = lambda s: len(split.pre_tokenize_str(s)) == 1
    probe = Tokenizer(models.BPE(vocab={"Q": 0}, merges=[]))
    probe.add_tokens([AddedToken("\U0010fffd", single_word=True, normalized=False)])
    found = {"L": [], "N": [], "S": [], "W": []}
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        c = chr(code)
        if whole("a" + c):
            found["L"].append(code)
        elif whole("1" + c):
            found["N"].append(code)
        elif code in (10, 13) or not whole("!" + c):
            found["S"].append(code)
        if 1 not in probe.encode(c + "\U0010fffd").ids and code != 0x10fffd:
            found["W"].append(code)
    return [f"{first:X} {last:X} {name}" for name in "LNSW" for first, last in runs(found[name])]


def write(name, lines):
    with open(os.path.join(OUT, name), "w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main():
    os.makedirs(OUT, exist_ok=True)
    data = llama_tokenizer()
    write("llama.json", [compact(data)])
    llama = Tokenizer.from_str(json.dumps(data))
    write("strings.jsonl", [compact([s] + llama.encode(s, add_special_tokens=False).ids) for s in strings(20500, 1, SPECIAL)])
    write("decode.jsonl", [compact([ids, llama.decode(ids, skip_special_tokens=False), llama.decode(ids, skip_special_tokens=True)])
                           for ids in id_lists(llama, 2000, 2)])
    data = flags_tokenizer()
    write("flags.json", [compact(data)])
    flags = Tokenizer.from_str(json.dumps(data))
    rows = []
    for s in flag_strings(3000, 3):
        flags.encode_special_tokens = False
        row = [s, flags.encode(s).ids]
        flags.encode_special_tokens = True
        rows.append(compact(row + [flags.encode(s).ids]))
    write("flags.jsonl", rows)
    write("char_classes.txt", char_classes())


if __name__ == "__main__":
    main()
