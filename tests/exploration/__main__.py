"""Print what each search saw, and the shortest way to the break in each broken system: python -m tests.exploration"""

import sys
import time

from tests.exploration import broken, checker, scenarios

for name, scenario in scenarios.ALL.items():
    started = time.process_time()
    found = checker.explore(scenario, broken.CORRECT)
    seconds = time.process_time() - started
    verdict = str(found.counterexample or "no rule is broken")
    sys.stdout.write(f"{name}: {found.states} states, {found.steps} steps, {seconds:.1f} s: {verdict}\n")
for name, variant in broken.VARIANTS.items():
    found = checker.explore(variant.scenario, variant.rules)
    sys.stdout.write(f"\n{name}, after {found.states} states: {found.counterexample}\n")
