"""What other computers do for this one: workers subtract backgrounds, helpers do the heavy steps (volume, films, atoms).

The road of a task: the trigger starts a step (`steps`) as `offload`, which asks the relay for a helper; the dispatcher there (`dispatch`)
assigns a free one. Both then talk through the relay, which only passes on: the helper fetches the files that the step needs, chunk by chunk
(`transfer`), and runs the ordinary command upon them; the step fetches what was made, puts it in place, and becomes the ordinary command
itself, which finds its work done.

The road of a projection is shorter: `relay` lets a worker in, and speaks for it with the hub. Both kinds come in by one door (`curve`), by
their keys (`keys`).
"""
