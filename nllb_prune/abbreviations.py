"""Abbreviations after which a sentence goes on though a full stop and a capital letter or a number follow.

Only these need a list: a small letter after a full stop begins no sentence, and initials are known by their length.
"""

from __future__ import annotations

from functools import cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ORDINAL_LANGUAGES = _words(
    "bos_Latn ces_Latn dan_Latn deu_Latn est_Latn eus_Latn fao_Latn fin_Latn hrv_Latn hun_Latn isl_Latn ltg_Latn "
    "ltz_Latn lvs_Latn nno_Latn nob_Latn pol_Latn slk_Latn slv_Latn srp_Cyrl szl_Latn tur_Latn"
)
"""Languages that write 3. for the third, as in the German 3. Mai."""

BEFORE_NUMBERS = _words(
    "abb abr abs afl ago app approx apr arr art arts aufl aug bd beil bl bls ca cap cca ch chap circa dec dez dic déc "
    "ene eq eqs ext feb fev fig figs fol févr jan janv juil jul jun kap kl klo lib lim mar max min mrt n nn no nos nov "
    "nr nro nrs num n° nº núm oct okt op ord ott out p pag pags par para ph pl pos pp pt pág págs párr s sec sect sekt "
    "sep sept sez stor str tab tabl taf tav tel tlf tlp tom tomo tél v ver vers vol vols z zn č čl číslo αρ αριθ εικ "
    "κεφ παρ σελ τηλ бр вып гл др кв лв ном оп п пл пп прим рис с ст стр т табл тел тт ул ч чл эт №"
)
"""In any language."""

_BEFORE_NAMES_ANYWHERE = "dr mr mrs ms prof st डा डॉ ডঃ ডা ਡਾ ડૉ ડો ଡଃ ଡା డా ಡಾ ഡോ"
_BEFORE_NAMES = {
    "ast_Latn": "av dña sr sra srta",
    "bel_Cyrl": "акад вул г гл дац праф с св ст імя",
    "ben_Beng": "মো মোঃ মোছা",
    "bos_Latn": "akad dipl g gđa gđica ing npr odn sv tj ul",
    "bul_Cyrl": "акад арх бул г ген гр д-р доц инж пл проф с св ул",
    "cat_Latn": "av d dra ex pl sr sra srta sta",
    "ceb_Latn": "atty bb engr g gng",
    "ces_Latn": "bc doc gen ing kpt mgr mjr mudr např nám phdr plk pplk resp rndr sv tj tzv ul",
    "dan_Latn": "adj eks evt fhv fr frk hhv hr inkl jf mht pga skt",
    "deu_Latn": (
        "allg bspw bzgl bzw dipl eigtl einschl evtl exkl fa fr frl geb gegr gem gen gest ggf ggfs hl hr hrn hrsg ing "
        "inkl insb jr jun kath med mio mrd phil röm sen sog stellv städt tsd tägl u v vgl vorm zzgl österr"
    ),
    "ell_Grek": "αγ βλ δηλ δρ κ κα καθ κκ κος λεωφ οδ πρβλ υπ",
    "eng_Latn": (
        "adm atty brig capt cf cmdr col comdr cpl drs eg esp fr gen gov hon ie insp lt maj messrs mlle mme mt pfc pres "
        "pvt rep reps rev rt sen sens sgt sr supt viz vs"
    ),
    "est_Latn": "hr jt lp nn nt prl sh sm tn",
    "fao_Latn": "eks hr",
    "fin_Latn": "esim fil ins kapt ko ks maist mm ns os rva toht tri ts",
    "fra_Latn": "av bd boul cf cie env ex fbg gén ing lt mgr mlle mlles mm mme mmes pl sgt ste sté vve",
    "glg_Latn": "av d dna sr sra srta sta",
    "hin_Deva": "सुश्री",
    "hrv_Latn": "akad dipl g gđa gđica ing npr odn sv tj ul",
    "hun_Latn": "id ifj ill kb pl stb szt vö özv ún",
    "ind_Latn": "bpk dra drg drs h hj ir jl kab kec kel kol sdr sdri yth",
    "isl_Latn": "frk hr sbr séra",
    "ita_Latn": "arch avv cav cfr col dott dottssa ecc egr es geom ing mons on profssa rag rev sig sigg sigra spett ss",
    "kaz_Cyrl": "акад г проф",
    "lit_Latn": "akad doc g gen kun pan pvz šv žr",
    "ltz_Latn": "evtl hl inkl jr madm mme resp vgl",
    "lvs_Latn": "akad doc gen piem sv",
    "mal_Mlym": "പ്രൊ മി ശ്രീ",
    "mkd_Cyrl": "акад д-р доц инж проф св ул",
    "nld_Latn": "bijv cf dhr drs ds dw evt excl fam gebr gen h incl ing ir jhr kol lt mej mevr mgr mw resp sr vgl zgn",
    "nno_Latn": "eks evt fr frk hr inkl jf",
    "nob_Latn": "eks evt fr frk hr inkl jf",
    "pol_Latn": "al bł dyr gen hab im inż kpt ks lic mgr mjr np os por ppłk płk red tj tzn tzw ul śp św",
    "por_Latn": "av cel d dra eng enga exma exmo gen ilma ilmo pe profa sr sra sras srs srta sta sto",
    "ron_Latn": "acad bd cf conf cpt d-l d-na d-ra dl dna dra ex gen ing lt sf str șos",
    "rus_Cyrl": (
        "акад арх архиеп бул г гг ген гл гр д доц еп зам им инж исп кн мин митр напр нач о обл п п-ов пгт пер пл пос "
        "просп проф р ред с св см ср т тел ул франц"
    ),
    "slk_Latn": "bc doc gen ing kpt mgr mjr mudr napr nám phdr plk resp rndr sv tj tzv ul",
    "slv_Latn": "akad dipl doc g ga gdč gen inž mag npr oz sv tj ul",
    "spa_Latn": (
        "arq av avda cap cdte cf col cía dpto dra dña ee ej excma excmo gral hnos ilma ilmo ing lic mons profa sgto sr "
        "sra sras sres srta sta sto ud uds"
    ),
    "srp_Cyrl": "акад г гђа гђица инж нпр одн проф св тј ул",
    "swe_Latn": "ev ex exkl fr frk hr inkl jfr kungl resp",
    "tam_Taml": "செல்வி திரு திருமதி",
    "tgl_Latn": "atty bb engr g gng gob sen",
    "tha_Thai": "ดร นพ ผศ พญ รศ",
    "tur_Latn": "alb arş av bkz cad doç gen hz krş mah müh op sn sok uzm vb yrd yzb çev ör örn şti",
    "ukr_Cyrl": (
        "акад бул вул г гг ген гл гр д див доц журн зам кн м напр о обл п пер пл просп проф р р-н ред с св т тел ім інж"
    ),
    "vie_Latn": "bs gs hn pgs ths tp ts tx",
}

FIRST_WORDS = {
    "eng_Latn": _words(
        "a after all an and another as at because before both but by did do does each every few for from had has have "
        "he her here his how however i i'm if in is it it's its later many meanwhile most my no nobody not now of on "
        "one our she since so some such that that's the their then there there's these they this those though thus to "
        "today was we we're were what when where which while who why will with yes yesterday yet you you're your"
    )
}
"""Words with which a sentence begins rather than that they follow an abbreviation such as U.S. or p.m."""


@cache
def before_names(code: str) -> frozenset[str]:
    """Return the abbreviations, casefolded, that end no sentence in a language whatever follows."""
    return _words(f"{_BEFORE_NAMES_ANYWHERE} {_BEFORE_NAMES.get(code, '')}")
