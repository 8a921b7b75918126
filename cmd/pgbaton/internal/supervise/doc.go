// Package supervise runs a command in a process group of its own, and is sure of its end.
//
// What it guarantees:
//
//   - The command is executed as it is given, without a shell. Its standard input, output and error, its environment, its
//     working directory and all other open files are those of the caller.
//   - A signal reaches every process of the command's group.
//   - The command has a life: a point in time to which the caller extends it again and again. A command whose life is not extended gets
//     TERM a grace before the end, and KILL at the end, with all its group, also while the caller is frozen. Once TERM was sent for
//     that reason, no later word saves the command.
//   - When the caller dies, in whatever way, the group gets KILL at once.
//   - [Process.Done] closes when no process is left: the command, its group and, on Linux, every descendant, also those that made a
//     session or a group of their own. What the command left running when it ended is killed.
//   - A command that is the terminal's foreground keeps it: keys such as Ctrl-C and Ctrl-Z reach the command's group, and the terminal is the
//     caller's again afterwards.
//
// # How it works
//
// Between the caller and the command is a third process, the keeper: the caller's own program, started again. The keeper has two pipes to
// the caller and is the command's parent. It takes orders, counts the command's life by the system's clock, and notices the caller's death
// because the pipe ends. A caller that is stopped cannot kill anything; the keeper can. It is in a group of its own, so no signal to the caller's
// or to the command's group reaches the keeper, and it survives all signals that it can.
//
//	state      | event                              | then
//	starting   | the command cannot be executed     | gone, with the system's error
//	starting   | it is executed                     | running
//	running    | signal                             | running; the group has it
//	running    | a grace before the end of the life | expiring; the group gets TERM and CONT
//	running    | end of the life, kill, no caller   | killing
//	running    | the command ends                   | killing
//	expiring   | end of the life, kill, no caller   | killing
//	expiring   | the command ends                   | killing
//	killing    | a process is there                 | killing; it gets KILL, again and again
//	killing    | none is there                      | gone
//
// What of it holds where:
//
//	                                    | Linux | macOS, BSD | Windows
//	whole group gets signals            | yes   | yes        | INT, QUIT, TERM and HUP as Ctrl-Break; USR1, USR2 no
//	caller killed: group is killed      | yes   | yes        | yes, by the job object
//	caller frozen: life ends            | yes   | yes        | no
//	keeper killed: group is killed      | yes   | yes        | no keeper
//	keeper and caller killed together   | the command is killed, its children live on | all live on | all are killed
//	children in groups of their own     | killed | live on   | killed
//	suspended machine counts as silence | yes   | no         | no keeper
//
// What it does not: a process of another user (sudo) cannot be killed, and is left; the caller is told. A process in an uninterruptible
// wait of the kernel is waited for.
package supervise
