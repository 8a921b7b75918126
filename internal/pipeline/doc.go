// Package pipeline shares one connection to PostgreSQL among many callers. It knows nothing of what the statements are for.
//
// # What it guarantees
//
//   - Every operation that was submitted is answered exactly once: completed, refused because its round trip failed, or lost
//     with the pipeline.
//   - It stops trusting itself TTL − TTL/10 after the last answered message was sent. The server ends the session TTL after
//     that message's statement ended, so no earlier than TTL after it was sent.
//   - A dead session is noticed within milliseconds, also while the pipeline is idle: a goroutine is always reading.
//   - After a failed round trip nothing is sent before the owner has set right what the round trip may have left behind.
//   - Through a pooler, an answer that was meant for another client fails the pipeline, see [session.ErrForeign]; and there is one round
//     trip under way at a time, so that no other client is given one that was meant for the pipeline.
//   - A lost pipeline stays lost: what is submitted to it is lost, too.
//
// # What it does not
//
// It does not bound what a statement waits for in the server. An owner whose statements wait delays the other callers.
//
// # How it works
//
// Operations submitted while a round trip is under way are combined into the next one. The owner writes the statements of a
// round trip and takes their rows: see [Owner] and [Round]. A round trip is one implicit transaction. There is one reader at a
// time. A goroutine that waits for its own answer reads for everybody while nobody else does, so a lone caller pays no
// change of goroutine. A reader of the pipeline's own takes over when answers are due and no caller reads, and while
// the pipeline is idle. A caller whose context ends stops reading; its operation is still answered
// to the owner.
//
// The pipeline has two goroutines, the reader and the keeper. They end soon after the pipeline has failed, and belong to
// the WaitGroup that its owner gives, see [Config].
package pipeline
