#!/usr/bin/perl
# Writes blocks of 4096 bytes with rising sequence numbers to DEVICE, block N at byte 4096 * N, and says
# `ack N;` once fsync has said that block N is on the disk: whoever reads the console knows what must not
# be lost. Several writers, so that requests are in flight at most times. With ORDER, the text is written to
# the store's node data/order after each EVERY acknowledged blocks.
#
# usage: blocks DEVICE FIRST COUNT WRITERS [EVERY ORDER]
use strict;
use warnings;
use Fcntl;
use IO::Handle;

my ( $device, $first, $count, $writers, $every, $order ) = @ARGV;
pipe( my $read, my $write ) or die "pipe: $!";
for my $writer ( 0 .. $writers - 1 ) {
    my $child = fork // die "fork: $!";
    next if $child;
    close $read;
    sysopen( my $disk, $device, O_RDWR ) or die "$device: $!";
    for ( my $number = $first + $writer ; $number < $first + $count ; $number += $writers ) {
        my $block = pack( 'Q<', $number ) . pack( 'L<*', map { ( $number * 2654435761 + $_ * 40503 ) & 0xffffffff } 0 .. 1021 );
        sysseek( $disk, $number * 4096, 0 ) or die "seek: $!";
        ( syswrite( $disk, $block ) // 0 ) == 4096 or die "write $number: $!";
        $disk->sync or die "fsync $number: $!";
        # One write a line: lines of several writers do not mix.
        syswrite( $write, "$number\n" );
    }
    exit 0;
}
close $write;
my $acknowledged = 0;
while ( defined( my $number = <$read> ) ) {
    chomp $number;
    syswrite( STDOUT, "ack $number;\n" );
    $acknowledged++;
    if ( defined $order && $acknowledged % $every == 0 && $acknowledged < $count ) {
        system( 'xenstore-write', 'data/order', $order ) == 0 or die "no order: $?";
    }
}
my $failed = 0;
while ( wait != -1 ) { $failed++ if $?; }
die "$failed writers failed\n" if $failed;
print "acknowledged $acknowledged of $count\n";
