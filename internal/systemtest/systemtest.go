// Package systemtest tests Spine as a whole: the contract, promises under faults
// and sabotage, drills, the page in a browser, and every command. Its tests start
// the real binary, or a whole service in their own process, on a real PostgreSQL.
// They know nothing that a user cannot know: no name that is not exported.
//
// The tests of a part alone stand beside that part.
package systemtest
