//! TD errors, advantages and excess losses become token weights of mean one.
