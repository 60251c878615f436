"""The command that looks into routes."""

from __future__ import annotations

import numpy as np


def test_routes_of_a_run_are_drawn_and_a_mistake_is_told(command, workdir):
  routes = np.array([[[0.9, 0.1]], [[0.2, 0.8]], [[0.3, 0.7]]])
  np.savez(workdir / 'routes.npz', replicas=['r'] * 3, tasks=['rte', 'cb', 'boolq'],
           categories=['c'] * 3, groups=['g'] * 3, layers=['encoder/0'], routed=[True],
           routes=routes, routes_t1=routes, temperatures=[1.0] * 3)
  output = workdir / 'out'
  arguments = f'--workdir={workdir}', f'--output={output}', '--action=heatmap'
  assert command('routes', *arguments) == (0, f"{output / 'routes.png'}\n{output}\n", '')
  assert sorted(path.name for path in output.iterdir()) == ['routes.png', 'routes.svg']
  code, stdout, stderr = command('routes', *arguments, '--replica=s')
  assert (code, stdout) == (2, '') and "no routes of replica 's', only of r" in stderr
