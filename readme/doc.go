// Package readme tests the README: each of its Go blocks is compiled and run.
//
// The word after ```go is a block's name. The files frame_*_test.go have a test for
// each name, with a line //readme:name where the block belongs. They are built with
// the tag readme, once TestGo has put the blocks in. What the blocks send to
// api.clarifai.com goes to a server of the frame's.
package readme
