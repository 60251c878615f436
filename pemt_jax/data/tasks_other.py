"""Tasks outside the benchmarks: inference, paraphrase, sentiment and multiple choice."""

from __future__ import annotations

import functools

from pemt_jax.data import templates, templates_qa
from pemt_jax.data.descriptions import DESCRIPTIONS
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.templates import Example, Row

_DIGITS = ('0', '1', '2', '3', '4')
_NATURAL = {'train': 'train', 'validation': 'validation', 'test': 'test'}
_accuracy = functools.partial(Task, metrics=('accuracy',), target_tokens=8)


def _piqa() -> Task:
  """Returns PIQA with whole choices (not in original: it shows their first characters)."""
  return _accuracy(
      name='piqa', benchmark='piqa', template=templates_qa.two_solutions(templates_qa.whole_text),
      variants={'first_character': templates_qa.two_solutions(templates_qa.first_character)},
      description=DESCRIPTIONS['piqa'], label_words=_DIGITS[:2], hf=('piqa', None), tfds='piqa',
      folders=('piqa/piqa', 'piqa'))


def _social_i_qa() -> Task:
  """Returns Social IQa with whole choices (not in original: first characters, no test split)."""
  return _accuracy(
      name='social_i_qa', benchmark='social_i_qa',
      template=templates_qa.social_choices(templates_qa.whole_text),
      variants={'first_character': templates_qa.social_choices(templates_qa.first_character)},
      description=DESCRIPTIONS['social_i_qa'], label_words=_DIGITS[:3], hf=('social_i_qa', None),
      folders=('social_i_qa/social_i_qa', 'social_i_qa'))


def _commonsense_qa() -> Task:
  """Returns CommonsenseQA; validation rows serve as test rows (not in original: no test split)."""
  return _accuracy(
      name='commonsense_qa', benchmark='commonsense_qa', template=templates_qa.five_choices,
      description=DESCRIPTIONS['commonsense_qa'], label_words=_DIGITS[:5],
      blank={'answerKey': 'A'}, few_shot_label=None, hf=('commonsense_qa', None),
      folders=('commonsense_qa/commonsense_qa', 'commonsense_qa'))


def _amazon_polarity() -> Task:
  """Returns Amazon reviews (not in original: it loads another data set and ends in an error)."""
  return _accuracy(
      name='amazon_polarity', benchmark='amazon_polarity', size='large',
      template=templates.fields_to_label({'title': 'title', 'content': 'content'}, _DIGITS[:2]),
      description=DESCRIPTIONS['amazon_polarity'], label_words=_DIGITS[:2], splits=_NATURAL,
      hf=('amazon_polarity', None), folders=('amazon_polarity/plain_text', 'amazon_polarity'))


def _snli_with_two_spaces(row: Row) -> list[Example]:
  source = (f"premise: {templates.text_field(row, 'premise')} "
            f"hypothesis:  {templates.text_field(row, 'hypothesis')}")
  return [Example(source, str(templates.label_index(row, 'label', _DIGITS[:3])))]


def _scitail_of_tfds(row: Row) -> Row:
  return {'sentence1': row['premise'], 'sentence2': row['hypothesis'], 'gold_label': row['label']}


def _winogrande_of_tfds(row: Row) -> Row:
  return {**row, 'answer': str(row['label'] + 1)}


_SCITAIL = ('entailment', 'neutral')
_PAIR = {'premise': 'premise', 'hypothesis': 'hypothesis'}

TASKS = (
    _accuracy(
        name='scitail', benchmark='scitail', size='small', label_words=_SCITAIL,
        template=templates.fields_to_label(
            {'premise': 'sentence1', 'hypothesis': 'sentence2'}, _SCITAIL, 'gold_label'),
        description=DESCRIPTIONS['scitail'], blank={'gold_label': 1}, few_shot_label='gold_label',
        hf=('scitail', 'snli_format'), tfds='sci_tail',
        tfds_row=_scitail_of_tfds,
        folders=('scitail/snli_format', 'scitail')),
    _accuracy(
        name='paws', benchmark='paws', label_words=_DIGITS[:2], splits=_NATURAL,
        template=templates.fields_to_label(
            {'sentence1': 'sentence1', 'sentence2': 'sentence2'}, _DIGITS[:2]),
        description=DESCRIPTIONS['paws'], hf=('paws', 'labeled_final'),
        tfds='paws_wiki/labeled_final_raw', folders=('paws/labeled_final', 'paws')),
    _accuracy(
        name='yelp_polarity', benchmark='yelp_polarity', size='large', label_words=_DIGITS[:2],
        template=templates.fields_to_label({'sentence': 'text'}, _DIGITS[:2]), splits=_NATURAL,
        description=DESCRIPTIONS['yelp_polarity'], hf=('yelp_polarity', None),
        tfds='yelp_polarity_reviews', folders=('yelp_polarity/plain_text', 'yelp_polarity'),
        fixed_row_limits={'train': 100_000}),
    _accuracy(
        name='winogrande', benchmark='winogrande', size='large', template=templates_qa.two_options,
        description=DESCRIPTIONS['winogrande'], blank={'answer': '1'}, few_shot_label=None,
        hf=('winogrande', 'winogrande_xl'), tfds='winogrande', tfds_row=_winogrande_of_tfds,
        tfds_splits={'train': 'train_xl'},
        folders=('winogrande/winogrande_xl', 'winogrande/winogrande', 'winogrande')),
    _accuracy(
        name='snli', benchmark='snli', size='large', label_words=_DIGITS[:3], splits=_NATURAL,
        template=templates.skip_unlabelled(templates.fields_to_label(_PAIR, _DIGITS[:3])),
        variants={'two_spaces_before_hypothesis': _snli_with_two_spaces},
        description=DESCRIPTIONS['snli'], hf=('snli', None), tfds='snli',
        folders=('snli/plain_text', 'snli')),
    _accuracy(
        name='multi_nli', benchmark='multi_nli', label_words=_DIGITS[:3],
        template=templates.fields_to_label(_PAIR, _DIGITS[:3]),
        splits={'train': 'train', 'validation': 'validation_mismatched',
                'test': 'validation_matched'},
        description=DESCRIPTIONS['multi_nli'], hf=('multi_nli', None), tfds='multi_nli',
        folders=('multi_nli/multi_nli', 'multi_nli')),
    _piqa(),
    _social_i_qa(),
    _commonsense_qa(),
    _amazon_polarity(),
)
