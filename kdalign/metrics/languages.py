"""Language codes and names, and the scripts of languages.

A code is a language's two letters of ISO 639-1, or its three of ISO 639-2 or 639-3 where it has no two; what stands
after it (``zh-CN``, ``pt_BR``, ``zho_Hans``) says country or script and is left out (RFC 5646, section 2.2).
"""

import difflib
import re

from kdalign.errors import UsageError

_TABLE = """
aa aar Afar
ab abk Abkhazian
ae ave Avestan
af afr Afrikaans
ak aka Akan, Twi
am amh Amharic
an arg Aragonese
ar ara arb Arabic
as asm Assamese
av ava Avaric
ay aym ayr Aymara
az aze azj Azerbaijani
ba bak Bashkir
be bel Belarusian
bg bul Bulgarian
bi bis Bislama
bm bam Bambara
bn ben Bengali, Bangla
bo bod tib Tibetan
br bre Breton
bs bos Bosnian
ca cat Catalan, Valencian
ce che Chechen
ch cha Chamorro
co cos Corsican
cr cre Cree
cs ces cze Czech
cu chu Church Slavonic
cv chv Chuvash
cy cym wel Welsh
da dan Danish, Dansk
de deu ger German, Deutsch
dv div Divehi, Maldivian
dz dzo Dzongkha
ee ewe Ewe
el ell gre Greek
en eng English
eo epo Esperanto
es spa Spanish, Castilian, Español, Espanol
et est ekk Estonian
eu eus baq Basque
fa fas per pes Persian, Farsi
ff ful fuv Fulah
fi fin Finnish, Suomi
fj fij Fijian
fo fao Faroese
fr fra fre French, Français, Francais
fy fry Western Frisian
ga gle Irish
gd gla Scottish Gaelic
gl glg Galician
gn grn Guarani
gu guj Gujarati
gv glv Manx
ha hau Hausa
he heb Hebrew
hi hin Hindi
ho hmo Hiri Motu
hr hrv Croatian
ht hat Haitian Creole
hu hun Hungarian, Magyar
hy hye arm Armenian
hz her Herero
ia ina Interlingua
id ind Indonesian
ie ile Interlingue
ig ibo Igbo
ii iii Sichuan Yi
ik ipk Inupiaq
io ido Ido
is isl ice Icelandic
it ita Italian, Italiano
iu iku Inuktitut
ja jpn Japanese, Nihongo
jv jav Javanese
ka kat geo Georgian
kg kon Kongo
ki kik Kikuyu
kj kua Kuanyama
kk kaz Kazakh
kl kal Greenlandic
km khm Khmer, Cambodian
kn kan Kannada
ko kor Korean
kr kau knc Kanuri
ks kas Kashmiri
ku kur kmr Kurdish
kv kom Komi
kw cor Cornish
ky kir Kyrgyz
la lat Latin
lb ltz Luxembourgish
lg lug Ganda, Luganda
li lim Limburgish
ln lin Lingala
lo lao Lao
lt lit Lithuanian
lu lub Luba-Katanga
lv lav lvs Latvian
mg mlg plt Malagasy
mh mah Marshallese
mi mri mao Maori
mk mkd mac Macedonian
ml mal Malayalam
mn mon khk Mongolian
mr mar Marathi
ms msa may zsm Malay
mt mlt Maltese
my mya bur Burmese, Myanmar
na nau Nauru
nb nob Norwegian Bokmål, Bokmål, Bokmal
nd nde North Ndebele
ne nep npi Nepali
ng ndo Ndonga
nl nld dut Dutch, Flemish, Nederlands
nn nno Norwegian Nynorsk, Nynorsk
no nor Norwegian, Norsk
nr nbl South Ndebele
nv nav Navajo
ny nya Nyanja, Chichewa
oc oci Occitan
oj oji Ojibwa
om orm gaz Oromo
or ori ory Odia, Oriya
os oss Ossetian
pa pan Punjabi, Panjabi
pi pli Pali
pl pol Polish, Polski
ps pus pbt Pashto, Pushto
pt por Portuguese, Português, Portugues
qu que quy Quechua
rm roh Romansh
rn run Rundi
ro ron rum Romanian, Moldavian
ru rus Russian, Русский
rw kin Kinyarwanda
sa san Sanskrit
sc srd Sardinian
sd snd Sindhi
se sme Northern Sami
sg sag Sango
si sin Sinhala
sk slk slo Slovak
sl slv Slovenian
sm smo Samoan
sn sna Shona
so som Somali
sq sqi alb als Albanian
sr srp Serbian
ss ssw Swati
st sot Southern Sotho
su sun Sundanese
sv swe Swedish, Svenska
sw swa swh Swahili
ta tam Tamil
te tel Telugu
tg tgk Tajik
th tha Thai
ti tir Tigrinya
tk tuk Turkmen
tl tgl Tagalog
tn tsn Tswana
to ton Tongan
tr tur Turkish, Türkçe, Turkce
ts tso Tsonga
tt tat Tatar
tw twi Twi
ty tah Tahitian
ug uig Uyghur
uk ukr Ukrainian
ur urd Urdu
uz uzb uzn Uzbek
ve ven Venda
vi vie Vietnamese
vo vol Volapük
wa wln Walloon
wo wol Wolof
xh xho Xhosa
yi yid ydd Yiddish
yo yor Yoruba
za zha Zhuang
zh zho chi cmn Chinese, Mandarin, 中文
zu zul Zulu
ace Acehnese
acm Mesopotamian Arabic
acq Ta'izzi-Adeni Arabic
aeb Tunisian Arabic
ajp South Levantine Arabic
apc North Levantine Arabic
ars Najdi Arabic
ary Moroccan Arabic
arz Egyptian Arabic
ast Asturian
awa Awadhi
azb South Azerbaijani
ban Balinese
bem Bemba
bho Bhojpuri
bjn Banjar
bug Buginese
ceb Cebuano
chr Cherokee
cjk Chokwe
ckb Central Kurdish, Sorani
crh Crimean Tatar
dik Dinka
dsb Lower Sorbian
dyu Dyula
fil Filipino
fon Fon
frp Arpitan
fur Friulian
gag Gagauz
gom Konkani
grc Ancient Greek
gsw Swiss German
hak Hakka Chinese
haw Hawaiian
hne Chhattisgarhi
hsb Upper Sorbian
ilo Iloko
kab Kabyle
kac Jingpho
kam Kamba
kbp Kabiyè
kea Kabuverdianu
kmb Kimbundu
lij Ligurian
lmo Lombard
ltg Latgalian
lua Luba-Lulua
luo Luo
lus Mizo
lzh Classical Chinese
mag Magahi
mai Maithili
mhr Meadow Mari
min Minangkabau
mni Manipuri
mos Mossi
myv Erzya
nan Min Nan Chinese
nds Low German
nqo N'Ko
nso Northern Sotho, Pedi
nus Nuer
pag Pangasinan
pap Papiamento
pms Piedmontese
prs Dari
sah Yakut, Sakha
sat Santali
scn Sicilian
sco Scots
shn Shan
szl Silesian
taq Tamasheq
tok Toki Pona
tpi Tok Pisin
tum Tumbuka
tzm Central Atlas Tamazight
udm Udmurt
umb Umbundu
vec Venetian
war Waray
wuu Wu Chinese
yue Cantonese
zza Zaza
"""
"""Codes of a language, the canonical one first, then its names in English and, for some, in the language itself."""

_ROW = re.compile(r"((?:[a-z]{2,3} )+)(.+)")
_CODE = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]{1,8})*")
_COUNTRIES = {
    **{"at": "de", "cn": "zh", "cz": "cs", "dk": "da", "gb": "en", "gr": "el", "hk": "zh", "il": "he"},
    **{"ir": "fa", "iw": "he", "jp": "ja", "jw": "jv", "mx": "es", "ph": "fil", "ua": "uk"},
    **{"us": "en", "vn": "vi"},
}
"""Words often given in place of a code: a country, or an outdated code."""


def _read(table: str) -> tuple[dict[str, str], dict[str, str]]:
    """Map each code, and each name in lower case, to the language's canonical code."""
    codes: dict[str, str] = {}
    names: dict[str, str] = {}
    for row in filter(None, table.splitlines()):
        match = _ROW.fullmatch(row)
        assert match is not None, row
        known = match[1].split()
        codes |= dict.fromkeys(known, known[0])
        names |= {name.casefold(): known[0] for name in match[2].split(", ")}
    return codes, names


_CODES, _NAMES = _read(_TABLE)
_CALLED = {code: name for name, code in reversed(_NAMES.items())}

HAN = frozenset({"zh", "hak", "lzh", "nan", "wuu", "yue"})
"""Languages written in Chinese characters alone."""
WITHOUT_BLANKS = HAN | {"bo", "dz", "ja", "km", "lo", "my", "shn", "th"}
"""Languages written without spaces between words."""
DOTLESS = frozenset({"az", "crh", "gag", "tr"})
"""Languages in which the lower case of I is ı and that of İ is i."""


def language_code(given: str, what: str = "language") -> str:
    """Return the canonical code of a language: ``zh`` for zh-CN, zh_Hans, zho and cmn.

    Args:
        given: a code, in letters of either case.
        what: name of the value, for the error line.

    Raises:
        UsageError: it is not the code of a known language; the line names the nearest.
    """
    match = _CODE.fullmatch(given.strip())
    found = _CODES.get(match[1].lower()) if match is not None else None
    if found is None:
        near = _nearest(given.strip().casefold())
        hint = f"; did you mean {near!r} ({_CALLED[near].title()})?" if near else ""
        raise UsageError(
            f"unknown {what} {given!r}{hint} (accepted: codes of ISO 639 such as en, de, zh or zh-CN; if left out, "
            "Unicode's rules divide words)"
        )
    return found


def is_language(given: str) -> bool:
    """Return whether a word is a code of a known language."""
    match = _CODE.fullmatch(given)
    return match is not None and match[1].lower() in _CODES


def _nearest(given: str) -> str | None:
    """The code of the language that a word may stand for; None if nothing is near."""
    first = re.split(r"[^\w]|_", given)[0]
    for word in (given, first):
        found = _NAMES.get(word) or _CODES.get(word) or _COUNTRIES.get(word)
        if found is not None:
            return found
    named = difflib.get_close_matches(given, _NAMES, n=1, cutoff=0.6)
    if named:
        return _NAMES[named[0]]
    coded = difflib.get_close_matches(first, _CODES, n=1, cutoff=0.5)
    return _CODES[coded[0]] if coded else None
