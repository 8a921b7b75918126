// Package supervise runs a command in a process group of its own, and is sure of its end.
//
// What it guarantees:
//
//   - The command is executed as it is given, without a shell. Its standard input, output and error, its environment, its
//     working directory and all other open files are those of the caller.
//   - A signal reaches every process of the command's group.
//   - The command has a life: a point in time to which the caller extends it again and again. A command whose life is not extended gets
//     TERM a grace before the end, and KILL at the end, with all its group, also while the caller is frozen, or the keeper is. Once that
//     time has come no later word saves the command, also if all stood still then.
//   - When the caller dies, in whatever way, the group gets KILL at once.
//   - [Process.Done] closes when no process is left: the command, its group and, on Linux, every descendant, also those that made a
//     session or a group of their own. What the command left running when it ended is killed.
//   - A command is the terminal's foreground if the caller was and both its standard input and output are terminals: keys such as Ctrl-C and
//     Ctrl-Z reach the command's group. In a pipeline the command gets the terminal when it reads from it. Afterwards the terminal is the
//     caller's again, unless the shell has given it to others meanwhile.
//
// # How it works
//
// Between the caller and the command is a third process, the keeper: the caller's own program, started again. The keeper has two pipes to
// the caller and is the command's parent. It takes orders, counts the command's life by the system's clock, and notices the caller's death
// because the pipe ends. A caller that is stopped cannot kill anything; the keeper can. It is in a group of its own, so no signal to the caller's
// or to the command's group reaches the keeper, and it survives all signals that it can. The caller counts the life as well, and kills the
// command's group itself, for a keeper that somebody has stopped. On Linux the caller becomes the parent of what a keeper leaves that somebody
// has killed, and kills all its children then, except those that it had before it started the command and other keepers: so a caller starts
// processes by this package alone.
//
//	state      | event                              | then
//	starting   | end of the life, kill, no caller   | killing; on Linux the keeper gets KILL, and the command with it
//	starting   | the command cannot be executed     | gone, with the system's error
//	starting   | it is executed                     | running
//	running    | signal                             | running; the group has it, and CONT if it is to end the command
//	running    | a grace before the end of the life | expiring; the group gets TERM and CONT
//	running    | end of the life, kill, no caller   | killing
//	running    | the command ends                   | killing
//	expiring   | end of the life, kill, no caller   | killing
//	expiring   | the command ends                   | killing
//	killing    | a process is there                 | killing; it gets KILL, again and again
//	killing    | none is there, by the kernel's word | gone
//	killing    | only other users' are there, twice | gone
//
// What of it holds where:
//
//	                                    | Linux | macOS, BSD | Windows
//	whole group gets signals            | yes   | yes        | INT, QUIT, TERM and HUP as Ctrl-Break; USR1, USR2 no
//	caller killed: group is killed      | yes   | yes        | yes, by the job object
//	caller frozen: life ends            | yes   | yes        | no
//	keeper killed: all are killed       | yes   | the group  | no keeper
//	keeper stopped: life ends           | yes   | yes        | no keeper
//	keeper and caller killed together   | the command is killed, its children live on | all live on | all are killed
//	children in groups of their own     | killed | live on   | killed
//	suspended machine counts as silence | yes   | no         | no keeper
//	program on a dead network: life ends | yes  | no         | no
//
// What it does not: a process of another user (sudo) cannot be killed, and is left; the caller is told. A process in an uninterruptible
// wait of the kernel is waited for.
package supervise
