"""What torch allocates while something runs."""

from torch.profiler import ProfilerActivity, profile


def peak_of(run):
    """Return the most bytes that were allocated at once, on the CPU, while something ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    events = (event for event in told.profiler.kineto_results.events() if event.name() == "[memory]")
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
