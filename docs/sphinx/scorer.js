/* The order of what a search finds: pages of docs/ before the manual and the reference, the project's own pages last. */
var Scorer = {
  score: ([page, , , , score]) => {
    if (page.startsWith("docs/") && page !== "docs/README") return score + 2;
    return /^(CHANGELOG|CONTRIBUTING)/.test(page) ? score - 3 : score;
  },
  /* Sphinx's own numbers. */
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
