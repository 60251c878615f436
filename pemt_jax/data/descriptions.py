"""One sentence per task; its token ids set the length of the task prompt and, by option, its start.

Every sentence has the form "Given <inputs>, the task is to <goal>."
"""

from __future__ import annotations

_READING = ('Given a question together with an article that may hold its answer, the task is to '
            'copy the shortest answer to the question out of the article.')

DESCRIPTIONS = {
    'mnli': ('Given a premise and a hypothesis sentence, the task is to tell whether the premise '
             'supports the hypothesis, contradicts it, or leaves it open.'),
    'qnli': ('Given a question and one sentence of its context, the task is to tell whether the '
             'answer to the question stands there.'),
    'qqp': ('Given two questions asked by users, the task is to tell whether both seek the same '
            'information.'),
    'cola': 'Given a sentence, the task is to judge whether it is acceptable English grammar.',
    'rte': ('Given a text and a short hypothesis about it, the task is to tell whether the text '
            'lets one infer the hypothesis.'),
    'wnli': ('Given a sentence with a pronoun and a second sentence that replaces it, the task is '
             'to tell whether the second sentence follows.'),
    'mrpc': ('Given two sentences taken from news reports, the task is to tell whether they carry '
             'the same meaning.'),
    'stsb': ('Given a pair of short sentences, the task is to score how similar their meanings are '
             'from zero to five.'),
    'sst2': ('Given one sentence from a movie review, the task is to tell whether its tone is '
             'negative or positive.'),
    'superglue-cb': ('Given a premise and a clause embedded in it, the task is to tell how far the '
                     'writer commits to it.'),
    'superglue-rte': ('Given a premise and a hypothesis derived from it, the task is to tell '
                      'whether accepting the premise means accepting the hypothesis.'),
    'superglue-copa': ('Given a premise and two alternative events, the task is to choose the '
                       'event that is the more likely cause or effect.'),
    'superglue-wic': ('Given two sentences and a word that occurs in both of them, the task is to '
                      'tell whether the word has one sense in both places.'),
    'superglue-wsc-fixed': ('Given a text with a marked noun and a marked ambiguous pronoun, the '
                            'task is to tell whether the pronoun refers to that very noun.'),
    'superglue-boolq': ('Given a passage and a yes or no question about it, the task is to read '
                        'the passage and decide whether the answer to the question is true or '
                        'false.'),
    'superglue-multirc': ('Given a paragraph, a question that needs several of its sentences, and '
                          'one candidate answer, the task is to tell whether the candidate is a '
                          'correct answer to that question.'),
    'superglue-record': ('Given a news passage, the names of the entities in it, and a query '
                         'sentence with one entity masked, the task is to find the entity among '
                         'those names that fills the masked place.'),
    'squad': _READING,
    'nq': _READING,
    'newsqa': _READING,
    'hotpotqa': _READING,
    'searchqa': _READING,
    'triviaqa': _READING,
    'drop': ('Given a passage and a question that asks for counting, sorting or arithmetic over '
             'it, the task is to produce the answer in a few words.'),
    'piqa': ('Given an everyday goal and two ways of reaching it, the task is to choose the way '
             'that works in the physical world.'),
    'social_i_qa': ('Given a social situation, a question about the people in it, and three '
                    'answers, the task is to choose the most fitting answer.'),
    'commonsense_qa': ('Given a question and five possible answers, the task is to choose the '
                       'answer that common sense suggests.'),
    'winogrande': ('Given a sentence with one blank and two options, the task is to choose the '
                   'option that fits the blank.'),
    'scitail': ('Given a scientific premise and a hypothesis built from an exam question, the '
                'task is to label the pair entailment or neutral.'),
    'yelp_polarity': ('Given a customer review of some local business, the task is to tell '
                      'whether the opinion is negative or positive.'),
    'amazon_polarity': ('Given the title and text of a product review, the task is to tell '
                        'whether the opinion is negative or positive.'),
    'paws': ('Given two sentences that share nearly all their words though perhaps in another '
             'order, the task is to tell whether one is a true paraphrase of the other.'),
    'snli': ('Given a picture caption as premise and a hypothesis, the task is to tell whether '
             'the hypothesis is true, unclear or false.'),
    'multi_nli': ('Given a premise of any genre and a hypothesis, the task is to tell whether the '
                  'hypothesis follows, stays open or conflicts.'),
}
